//! Modules that cannot be plugins, damaged modules, and native code on disk.

use std::fs;

use leno_wasm_host::{
    CacheError, Digest, Engine, EngineSettings, Instance, LoadError, Module, Plugin,
    PluginSettings, StartError,
};

use crate::{
    embedder::KitHost,
    script::{Guest, Int, Script, engine, text},
};

fn start(text: &str) -> StartError {
    match Guest::start(text, PluginSettings::default()) {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[test]
fn refusals_say_what_is_missing() {
    let memory = "(memory (export \"memory\") 1)";
    let marker = "(func (export \"proxy_abi_version_0_2_1\"))";
    let malloc = "(func (export \"malloc\") (param i32) (result i32) (i32.const 0))";
    let cases = [
        (format!("(module {memory} {malloc})"), "no Proxy-Wasm plugin"),
        (
            format!("(module {memory} {malloc} (func (export \"proxy_abi_version_0_2_100\")))"),
            "no Proxy-Wasm plugin",
        ),
        (format!("(module {marker} {malloc})"), "the export `memory` is missing"),
        (format!("(module {marker} {memory})"), "an allocator is missing"),
        (
            format!("(module (import \"env\" \"callback\" (func)) {marker} {memory} {malloc})"),
            "env::callback",
        ),
        (
            format!(
                "(module (import \"env\" \"proxy_log\" (func (param i32))) {marker} {memory} {malloc})"
            ),
            "proxy_log",
        ),
        (
            format!(
                "(module {marker} {memory} {malloc} (func (export \"proxy_on_tick\") (param i64)))"
            ),
            "`proxy_on_tick` has another signature",
        ),
        (
            format!("(module {marker} {memory} (func (export \"malloc\") (param i64)))"),
            "`malloc` has another signature",
        ),
        (
            format!(
                "(module {marker} {memory} {malloc} (func (export \"proxy_on_request_headers\")))"
            ),
            "`proxy_on_request_headers` has another signature",
        ),
    ];
    for (module, message) in cases {
        let error = start(&module).to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn what_is_no_module_is_refused() {
    for bytes in [&b""[..], b"not wasm", b"\0asm\x01\0\0\0\x63"] {
        let refused = Module::compile(engine(), bytes);
        assert!(matches!(refused, Err(LoadError::Invalid(_) | LoadError::NoAbiVersion)));
    }
    let error = Module::compile(engine(), b"<!doctype html>").unwrap_err().to_string();
    assert!(error.contains("00 61 73 6d") && !error.contains('\n'), "{error}");
    let small = EngineSettings { module_bytes: 4, ..EngineSettings::default() };
    let refused = Module::compile(&Engine::new(small).unwrap(), b"12345");
    assert!(matches!(refused, Err(LoadError::TooLarge { bytes: 5, limit: 4 })));
}

/// Damaged modules are refused or run, and never hurt: each is compiled, started and called if it can be.
#[test]
fn damaged_modules_do_no_harm() {
    let script = Script::new()
        .call("proxy_log", &[Int(2), text("hello")])
        .call("proxy_add_header_map_value", &[Int(0), text("a"), text("b")])
        .raw("proxy_on_configure", "");
    let bytes = wat::parse_str(script.text()).unwrap();
    let mut seed = 7_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let mut settings = PluginSettings::default();
    settings.limits.memory_bytes = 1 << 20;
    settings.limits.deadline = std::time::Duration::from_millis(20);
    settings.limits.start_deadline = std::time::Duration::from_millis(20);
    let mut started = 0;
    for _ in 0..250 {
        let mut damaged = bytes.clone();
        for _ in 0..=random(3) {
            let at = random(damaged.len());
            damaged[at] = random(256) as u8;
        }
        if random(4) == 0 {
            damaged.truncate(random(damaged.len()).max(1));
        }
        started += usize::from(try_out(&damaged, &settings));
    }
    assert!(started > 0, "some damage does not matter");
}

fn kit_host() -> KitHost {
    KitHost {
        log: Default::default(),
        wishes: Default::default(),
        queues: Default::default(),
        started: std::time::Instant::now(),
        seed: 1,
    }
}

fn try_out(bytes: &[u8], settings: &PluginSettings) -> bool {
    let Ok(module) = Module::compile(engine(), bytes) else { return false };
    let Ok(plugin) = Plugin::<KitHost>::new(&module, settings.clone()) else { return false };
    let Ok(mut instance) = Instance::start(&plugin, kit_host()) else { return false };
    let (context, created) = instance.create_context(Guest::stream());
    created.is_ok_and(|()| instance.on_request_headers(context, 3, true).is_ok())
}

#[test]
fn native_code_is_kept_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let bytes = wat::parse_str(Script::new().text()).unwrap();
    let digest = Digest::of(&bytes);
    assert!(Module::load_cached(engine(), &cache, digest).unwrap().is_none());
    Module::compile(engine(), &bytes).unwrap().save(&cache).unwrap();
    let loaded = Module::load_cached(engine(), &cache, digest).unwrap().unwrap();
    assert_eq!((loaded.digest(), Digest::parse(&digest.to_string())), (digest, Some(digest)));
    assert!(Plugin::<KitHost>::new(&loaded, PluginSettings::default()).is_ok());
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 1, "nothing unfinished is left");
    damaged_files(&cache, digest);
}

fn damaged_files(cache: &std::path::Path, digest: Digest) {
    let file = cache.join(format!("{digest}.cwasm"));
    let good = fs::read(&file).unwrap();
    // The module's digest, the code's length and checksum, the code.
    for at in [20, 48, 55, 57, 60, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, bad).unwrap();
        let refused = Module::load_cached(engine(), cache, digest);
        assert!(matches!(refused, Err(CacheError::Damaged { .. })), "{at}");
    }
    let longer = [&good[..], b"\0"].concat();
    for bad in [&good[..40], &good[..60], &good[..good.len() / 2], &good[..good.len() - 1], &longer]
    {
        fs::write(&file, bad).unwrap();
        let refused = Module::load_cached(engine(), cache, digest);
        assert!(matches!(refused, Err(CacheError::Damaged { .. })), "{}", bad.len());
    }
    // What an earlier version of this host has written is not damaged, but of no use.
    let earlier = [b"LENOWSM1", &good[8..]].concat();
    fs::write(&file, earlier).unwrap();
    assert!(Module::load_cached(engine(), cache, digest).unwrap().is_none());
    // Code for another engine or processor is not for this one: it is as if there were none.
    let mut foreign = good.clone();
    foreign[10] ^= 1;
    fs::write(&file, foreign).unwrap();
    assert!(Module::load_cached(engine(), cache, digest).unwrap().is_none());
    fs::write(&file, &good).unwrap();
    let loaded = Module::load_cached(engine(), cache, digest).unwrap().unwrap();
    // What becomes of the file afterwards is nothing to code that runs.
    for bad in [vec![0xcc; good.len()], Vec::new()] {
        fs::write(&file, bad).unwrap();
        let plugin = Plugin::<KitHost>::new(&loaded, PluginSettings::default()).unwrap();
        assert!(Instance::start(&plugin, kit_host()).is_ok());
    }
}

#[cfg(unix)]
#[test]
fn code_that_others_could_have_written_is_not_run() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let bytes = wat::parse_str(Script::new().text()).unwrap();
    let digest = Digest::of(&bytes);
    Module::compile(engine(), &bytes).unwrap().save(directory.path()).unwrap();
    let file = directory.path().join(format!("{digest}.cwasm"));
    for path in [file.as_path(), directory.path()] {
        let before = fs::metadata(path).unwrap().permissions();
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Module::load_cached(engine(), directory.path(), digest);
        assert!(matches!(refused, Err(CacheError::Writable { .. })));
        fs::set_permissions(path, before).unwrap();
    }
    assert!(Module::load_cached(engine(), directory.path(), digest).unwrap().is_some());
    // Whoever made the folder before us may have put anything there. Only root can give a file away, so only then is
    // there something to see.
    for path in [file.as_path(), directory.path()] {
        if std::os::unix::fs::chown(path, Some(65_534), None).is_ok() {
            let refused = Module::load_cached(engine(), directory.path(), digest);
            assert!(matches!(refused, Err(CacheError::Writable { .. })));
            std::os::unix::fs::chown(path, Some(0), None).unwrap();
        }
    }
}

#[test]
fn many_may_save_the_same_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = wat::parse_str(Script::new().text()).unwrap();
    let module = Module::compile(engine(), &bytes).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| module.save(directory.path()).unwrap()));
        }
    });
    assert!(Module::load_cached(engine(), directory.path(), module.digest()).unwrap().is_some());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn digests_are_read() {
    for text in ["", "00", &"g".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
        assert_eq!(Digest::parse(text), None, "{text}");
    }
    assert_eq!(Digest::parse(&"ab".repeat(32)).unwrap().bytes(), &[0xab; 32]);
}
