//! The architecture, as a test: who may import whom, which modules stay pure, no file outside
//! the module tree, no file too long to read.

#![expect(clippy::unwrap_used, reason = "a test: what it cannot read fails it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Modules in order: a module may import only modules of an earlier line.
const PROXY: &[&[&str]] = &[
    &["error"],
    &["telemetry", "http"],
    &["tls", "route", "cache", "filter"],
    &["cluster", "identity"],
    &["snapshot"],
    &["forward", "config"],
    &["listen", "admin", "bootstrap"],
    &["app", "fuzz", "hooks"],
];
const CONTROL_PLANE: &[&[&str]] = &[
    &["error"],
    &["telemetry", "store", "access", "plan", "inject", "quota"],
    &["objects"],
    &["registry", "findings"],
    &["push", "ca", "purge"],
    &["transport", "kubernetes"],
    &["xds", "http_api", "webhook", "settings"],
    &["app", "fuzz"],
];
/// Decide, never act: no tasks, sockets, clocks or global randomness.
const PURE: &[&str] = &[
    "redirect/src/cni",
    "redirect/src/iptables",
    "redirect/src/nft",
    "redirect/src/plan",
    "redirect/src/rules",
    "proxy/src/listen/hello",
    "proxy/src/listen/sniff",
    "proxy/src/admin/gate",
    "proxy/src/http/head",
    "proxy/src/http/http1/chunks",
    "proxy/src/http/http1/request",
    "proxy/src/http/http1/response",
    "proxy/src/http/replay",
    "proxy/src/tls/verify",
    "proxy/src/route",
    "proxy/src/filter/authz",
    "proxy/src/filter/jwt/verify",
    "proxy/src/filter/rate_limit",
    "proxy/src/filter/wasm/body/pieces",
    "proxy/src/filter/wasm/buffer",
    "proxy/src/filter/wasm/head",
    "proxy/src/filter/wasm/kept",
    "proxy/src/filter/wasm/restart",
    "proxy/src/filter/wasm/tally",
    "proxy/src/cache/policy",
    "proxy/src/cache/remote/codec",
    "proxy/src/cache/remote/keys",
    "proxy/src/cache/remote/rest",
    "proxy/src/cluster/balance",
    "proxy/src/cluster/breaker",
    "proxy/src/cluster/circuit",
    "proxy/src/cluster/endpoints",
    "proxy/src/cluster/ewma",
    "proxy/src/cluster/health",
    "proxy/src/cluster/outlier",
    "proxy/src/cluster/tally",
    "proxy/src/cluster/window",
    "proxy/src/forward/affinity",
    "proxy/src/forward/observed",
    "proxy/src/forward/quantile",
    "proxy/src/forward/budget",
    "proxy/src/forward/concurrency",
    "proxy/src/forward/retry",
    "proxy/src/forward/simulation",
    "proxy/src/forward/outcome",
    "proxy/src/config/canary",
    "proxy/src/config/compile",
    "proxy/src/config/inputs",
    "proxy/src/config/pack",
    "proxy/src/config/prepare/oci/archive",
    "proxy/src/config/prepare/oci/challenge",
    "proxy/src/config/prepare/oci/manifest",
    "proxy/src/config/source/control_plane/mirror",
    "control-plane/src/ca/issue",
    "control-plane/src/ca/jwt",
    "control-plane/src/ca/limits",
    "control-plane/src/ca/rotation",
    "control-plane/src/kubernetes/election",
    "control-plane/src/kubernetes/facts",
    "control-plane/src/kubernetes/mapping",
    "control-plane/src/kubernetes/status",
    "control-plane/src/kubernetes/world",
    "control-plane/src/inject",
    "control-plane/src/objects",
    "control-plane/src/plan",
    "control-plane/src/purge/log",
    "control-plane/src/purge/roster",
    "control-plane/src/quota",
    "control-plane/src/registry/lease",
    "control-plane/src/xds/session",
];
const IMPURE: &[&str] =
    &["async fn", "tokio::", ".await", "Instant::now", "SystemTime::now", "rand::rng"];
/// A name and the only places that may say it.
const FENCED: &[(&str, &[&str])] = &[
    ("leno_wasm_host", &["proxy/src/filter/wasm"]),
    (
        "leno_api::wire",
        &["proxy/src/config/source", "control-plane/src/xds", "control-plane/src/ca"],
    ),
    ("kube::", &["control-plane/src/kubernetes"]),
    ("k8s_openapi", &["control-plane/src/kubernetes"]),
    ("hyper::", &["proxy/src/http", "control-plane/src/ca/fetch"]),
    ("env::var", &["proxy/src/bootstrap", "control-plane/src/settings"]),
];
const MAX_LINES: usize = 500;

#[test]
fn imports_only_point_down() {
    for (krate, layers) in [("proxy", PROXY), ("control-plane", CONTROL_PLANE)] {
        let src = root().join(krate).join("src");
        let rank = |m: &str| layers.iter().position(|layer| layer.contains(&m));
        for file in rust_files(&src) {
            let rel = file.strip_prefix(&src).unwrap();
            let module = rel.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
            if ["lib", "main"].contains(&module) {
                continue;
            }
            let own = rank(module)
                .unwrap_or_else(|| panic!("{krate}: module `{module}` has no place in the order"));
            for used in crate_imports(&fs::read_to_string(&file).unwrap()) {
                if used != module && rank(&used).is_some_and(|r| r >= own) {
                    panic!("{}: `{module}` must not import `{used}`", file.display());
                }
            }
        }
    }
}

#[test]
fn the_core_stays_pure() {
    for module in PURE {
        let paths = [root().join(module), root().join(format!("{module}.rs"))];
        let files: Vec<_> = paths.iter().flat_map(|p| rust_files(p)).collect();
        assert!(!files.is_empty(), "`{module}` is listed but does not exist");
        for file in files.iter().filter(|f| !f.ends_with("tests.rs")) {
            let text = fs::read_to_string(file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for word in IMPURE {
                assert!(!code.contains(word), "{}: `{word}` in a pure module", file.display());
            }
        }
    }
}

#[test]
fn fenced_names_stay_inside() {
    for file in
        ["proxy", "control-plane"].iter().flat_map(|c| rust_files(&root().join(c).join("src")))
    {
        let text = fs::read_to_string(&file).unwrap();
        for (name, places) in FENCED {
            let inside = places.iter().any(|p| {
                file.starts_with(root().join(p)) || file == root().join(format!("{p}.rs"))
            });
            assert!(
                inside || !text.contains(name),
                "{}: `{name}` belongs in {places:?}",
                file.display()
            );
        }
    }
}

#[test]
fn every_file_is_short_and_declared() {
    for file in ["api", "daemon", "wasm-host", "proxy", "redirect", "control-plane"]
        .iter()
        .flat_map(|c| rust_files(&root().join(c).join("src")))
    {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap();
        let lines = text.split("#[cfg(test)]").next().unwrap().lines().count();
        // The limit is for what stands before the tests; `tests.rs` is nothing else.
        assert!(lines <= MAX_LINES || name == "tests", "{}: {lines} lines", file.display());
        let dir = file.parent().unwrap();
        if ["lib", "main"].contains(&name) || dir.ends_with("bin") {
            continue;
        }
        let parent = ["lib.rs", "main.rs"]
            .map(|f| dir.join(f))
            .into_iter()
            .find(|p| p.exists())
            .unwrap_or_else(|| dir.with_extension("rs"));
        let parent_text = fs::read_to_string(&parent).unwrap_or_default();
        assert!(
            parent_text.contains(&format!("mod {name};")),
            "{}: not declared in {}",
            file.display(),
            parent.display()
        );
    }
}

/// By the lock file, so that a dependency of a dependency counts, too; that has tests' dependencies as well, so what the
/// proxy itself needs is taken from its manifest.
#[test]
fn the_proxy_knows_nothing_of_kubernetes() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let lists: BTreeMap<&str, Vec<&str>> = lock
        .split("[[package]]")
        .filter_map(|package| {
            let name = package.split("name = \"").nth(1)?.split('"').next()?;
            let list = package.split("dependencies = [").nth(1).unwrap_or_default();
            let quoted = list.split(']').next()?.split('"').skip(1).step_by(2);
            Some((name, quoted.filter_map(|one| one.split(' ').next()).collect()))
        })
        .collect();
    let reach = |member: &str| {
        let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        let normal = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next();
        let names = normal.unwrap().lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        let mut left: Vec<_> =
            names.filter(|name| lists.contains_key(name)).map(str::to_owned).collect();
        let mut found: BTreeSet<String> = BTreeSet::new();
        while let Some(name) = left.pop() {
            if found.insert(name.clone()) {
                left.extend(lists[&*name].iter().map(|&next| next.to_owned()));
            }
        }
        found
    };
    let foreign =
        |name: &String| name == "kube" || name.starts_with("kube-") || name.starts_with("k8s-");
    let found = reach("proxy");
    assert!(found.contains("rustls") && !found.iter().any(foreign), "{found:?}");
    assert!(reach("control-plane").contains("kube-runtime"), "the lock file is read well");
}

/// First path segment of each `crate::…`, those inside `use crate::{a, b::c}` included.
fn crate_imports(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().map(|l| l.split("//").next().unwrap()).collect();
    let mut found = BTreeSet::new();
    for after in code.join(" ").split("crate::").skip(1) {
        if !after.starts_with('{') {
            found.insert(ident(after));
            continue;
        }
        let mut depth = 0;
        for (at, c) in after.char_indices() {
            depth += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            if depth == 0 {
                break;
            }
            if depth == 1 && (c == '{' || c == ',') {
                found.insert(ident(&after[at + 1..]));
            }
        }
    }
    found
}

fn ident(text: &str) -> String {
    let name = text.trim_start();
    name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn reads_every_form_of_import() {
    let text = "use crate::{a, b::{c, d}, e}; // crate::f\nfn x(y: crate::g::H) {}\n";
    let found: Vec<String> = crate_imports(text).into_iter().collect();
    assert_eq!(found, ["a", "b", "e", "g"]);
}

fn rust_files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.into()];
    }
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir() || p.extension().is_some_and(|e| e == "rs"))
        .flat_map(|p| rust_files(&p))
        .collect();
    files.sort();
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}
