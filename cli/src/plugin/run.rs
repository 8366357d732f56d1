//! `leno plugin run`: a proxy on this machine with one plugin between callers and an upstream.
//!
//! It is the real proxy, in file mode: the resources that say so are made here and kept in a temporary file.

use std::{
    fmt::Write as _,
    fs,
    io::Write,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, FromArgMatches, builder::Resettable};
use serde_json::{Value, json};

use super::test::{build, given_configuration};
use crate::error::Error;

/// Run a proxy on this machine with a plugin between callers and an upstream
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// A .wasm file, or a crate, which is built first
    #[arg(default_value = ".", value_name = "MODULE|CRATE")]
    plugin: PathBuf,

    /// Where requests go that the plugin lets pass
    #[arg(long, value_name = "HOST:PORT")]
    upstream: String,

    /// Where callers connect
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,

    /// The admin port, for `leno plugin list --admin` and metrics
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    admin: SocketAddr,

    /// The plugin's configuration: JSON, or @FILE with it
    #[arg(short, long, value_name = "JSON|@FILE")]
    config: Option<String>,

    /// Which plugin of the module, where it has several (`pluginName` of a WasmPlugin)
    #[arg(long, default_value = "", value_name = "NAME")]
    root_id: String,

    /// A service that the plugin can call: user.shop=127.0.0.1:9001. May be repeated
    #[arg(long = "service", value_name = "NAME.NAMESPACE=HOST:PORT", value_parser = service)]
    services: Vec<(String, String, SocketAddr)>,

    /// Keep native code here, so that the next start is faster
    #[arg(long, value_name = "DIR")]
    module_cache: Option<PathBuf>,

    /// Log filter
    #[arg(long, default_value = "info", value_name = "FILTER")]
    log: String,
}

/// What the upstream is called among the resources.
const UPSTREAM: &str = "upstream";
const NAMESPACE: &str = "default";

pub fn run(args: &RunArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let upstream = resolve(&args.upstream).map_err(Error::Usage)?;
    let module = build::module_of(&args.plugin)?;
    let module = module
        .canonicalize()
        .map_err(|error| Error::Usage(format!("{} cannot be read: {error}", module.display())))?;
    let directory = tempfile::tempdir().map_err(Error::Runtime)?;
    let file = directory.path().join("mesh.yaml");
    // Where its path is one that every URL can say.
    let copy = directory.path().join("plugin.wasm");
    fs::copy(&module, &copy).map_err(Error::Runtime)?;
    let text = resources(args, &plugin_name(&module), &copy, upstream)?;
    fs::write(&file, text).map_err(Error::Runtime)?;
    let shown = (args.listen, module.display(), &args.upstream);
    writeln!(out, "http://{} passes {} on its way to {}", shown.0, shown.1, shown.2)?;
    let options = options(args, &file, upstream)?;
    leno_proxy::run(options).map_err(|error| Error::Usage(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// The proxy's own flags, read by the proxy's own parser. Settings of the person's own mesh (LENO_...) are none
/// of this one's.
fn options(
    args: &RunArgs,
    file: &Path,
    upstream: SocketAddr,
) -> Result<leno_proxy::Options, Error> {
    let command = leno_proxy::Options::augment_args(clap::Command::new("leno proxy"));
    let command = command.mut_args(|argument| argument.env(Resettable::Reset));
    let mut flags = vec![
        "leno proxy".into(),
        "--config".into(),
        file.as_os_str().to_owned(),
        "--name".into(),
        UPSTREAM.into(),
        "--inbound".into(),
        args.listen.to_string().into(),
        "--outbound".into(),
        "127.0.0.1:0".into(),
        "--admin".into(),
        args.admin.to_string().into(),
        "--app-address".into(),
        upstream.ip().to_string().into(),
        "--log".into(),
        (&args.log).into(),
        "--access-log".into(),
        "text".into(),
        // Whoever presses Ctrl-C does not want to wait.
        "--drain".into(),
        "1".into(),
    ];
    if let Some(cache) = &args.module_cache {
        flags.extend(["--module-cache".into(), cache.as_os_str().to_owned()]);
    }
    let matches = command.try_get_matches_from(flags);
    let options = matches.and_then(|matches| leno_proxy::Options::from_arg_matches(&matches));
    options.map_err(|error| Error::Usage(error.to_string()))
}

/// The resources, as documents of YAML (of which JSON is a part).
fn resources(
    args: &RunArgs,
    name: &str,
    module: &Path,
    upstream: SocketAddr,
) -> Result<String, Error> {
    let mut all = service_of(UPSTREAM, NAMESPACE, upstream).to_vec();
    for (name, namespace, address) in &args.services {
        all.extend(service_of(name, namespace, *address));
    }
    let mut spec = json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": UPSTREAM}],
        "url": format!("file://{}", module.display()),
        "pluginName": args.root_id,
    });
    if let Some(given) = &args.config {
        let bytes = given_configuration(given)?;
        // A text that is no JSON is handed over as it is.
        let value = serde_json::from_slice::<Value>(&bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
        spec["pluginConfig"] = value;
    }
    all.push(resource("WasmPlugin", name, NAMESPACE, spec));
    let mut text = String::new();
    for resource in all {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "---\n{resource}");
    }
    Ok(text)
}

/// What the plugin is called: after its file, as far as a resource can be.
fn plugin_name(module: &Path) -> String {
    let stem = module.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = stem.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    match name.trim_matches('-') {
        "" => "plugin".to_owned(),
        name => name.chars().take(63).collect(),
    }
}

/// A service and the one workload that it has.
fn service_of(name: &str, namespace: &str, address: SocketAddr) -> [Value; 2] {
    let ports = json!([{"name": "http", "port": 80, "protocol": "http"}]);
    let service = json!({"hosts": [name], "ports": ports});
    let workload = json!({
        "services": [name],
        "address": address.ip().to_string(),
        "ports": {"http": address.port()},
    });
    [resource("Service", name, namespace, service), resource("Workload", name, namespace, workload)]
}

fn resource(kind: &str, name: &str, namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

fn service(text: &str) -> Result<(String, String, SocketAddr), String> {
    let wrong = || format!("`{text}`: write user.shop=127.0.0.1:9001");
    let (name, address) = text.split_once('=').ok_or_else(wrong)?;
    let (name, namespace) = name.split_once('.').ok_or_else(wrong)?;
    Ok((name.to_owned(), namespace.to_owned(), resolve(address)?))
}

fn resolve(address: &str) -> Result<SocketAddr, String> {
    let mut found = address.to_socket_addrs().map_err(|error| format!("{address}: {error}"))?;
    found.next().ok_or_else(|| format!("{address} has no address"))
}

#[cfg(test)]
mod tests {
    use leno_api::yaml;

    use super::*;

    fn args(config: Option<&str>) -> RunArgs {
        RunArgs {
            plugin: PathBuf::new(),
            upstream: "127.0.0.1:9000".to_owned(),
            listen: ([127, 0, 0, 1], 8080).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            config: config.map(str::to_owned),
            root_id: String::new(),
            services: vec![service("user.shop=127.0.0.1:9001").unwrap()],
            module_cache: None,
            log: "info".to_owned(),
        }
    }

    #[test]
    fn the_proxy_takes_what_is_written() {
        let upstream = resolve("127.0.0.1:9000").unwrap();
        for config in [None, Some("{\"a\":1}"), Some("plain text")] {
            let name = plugin_name(Path::new("/a b/My_Plugin (1).wasm"));
            let module = Path::new("/tmp/plugin.wasm");
            let text = resources(&args(config), &name, module, upstream).unwrap();
            let documents = yaml::documents(&text).unwrap();
            assert_eq!(documents.len(), 5);
            for document in documents {
                document.resource().unwrap();
            }
        }
        let options = options(&args(None), Path::new("/tmp/mesh.yaml"), upstream).unwrap();
        assert_eq!(options.inbound.port(), 8080);
        assert_eq!(options.name.as_deref(), Some(UPSTREAM));
    }

    #[test]
    fn plugins_are_called_after_their_file() {
        let cases = [
            ("/a/tag_request.wasm", "tag-request"),
            ("My_Plugin (1).wasm", "my-plugin--1"),
            ("é.wasm", "plugin"),
        ];
        for (file, name) in cases {
            assert_eq!(plugin_name(Path::new(file)), name);
        }
    }

    #[test]
    fn services_have_a_name_and_an_address() {
        for wrong in ["user.shop", "user=127.0.0.1:1", "user.shop=nowhere"] {
            assert!(service(wrong).is_err(), "{wrong}");
        }
    }
}
