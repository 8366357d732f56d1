//! The modules of the shop's plugins, built from the repository that this program comes from.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::Error,
    plugin::{load, module_of},
};

/// Their crates in `plugins/`.
const CRATES: [&str; 2] = ["caller-quota", "mask-json"];

/// What there is to show plugins with.
pub enum Modules {
    /// Where they are, as on a machine where somebody has put them.
    Built(PathBuf),
    /// Why there are none, though nothing is wrong.
    LeftOut(String),
    /// Why they could not be built.
    Broken(String),
}

impl Modules {
    /// Has cargo build what is not built yet, into `directory`, and compiles it to native code in [`cache`]. Takes a few
    /// seconds the first time; cargo says what it does on standard error.
    pub fn build(directory: &Path) -> Self {
        let Some(plugins) = sources() else {
            let reason = "Leno's sources are not here, so the plugins cannot be built";
            return Self::LeftOut(reason.to_owned());
        };
        if !is_cargo_here() {
            return Self::LeftOut("cargo is not here, so the plugins cannot be built".to_owned());
        }
        eprintln!("building the plugins of the shop in {}", plugins.display());
        let crates = CRATES.map(|name| plugins.join(name));
        install(&crates, directory)
            .map_or_else(|error| Self::Broken(error.to_string()), Self::Built)
    }
}

/// Where the sidecars of a demonstration in `directory` keep native code. They share it: a debug build of the compiler
/// takes seconds of all cores for each of them.
pub fn cache(directory: &Path) -> PathBuf {
    directory.join("module-cache")
}

fn install(crates: &[PathBuf], directory: &Path) -> Result<PathBuf, Error> {
    let plugins = directory.join("plugins");
    fs::create_dir_all(&plugins)?;
    for path in crates {
        let module = module_of(path)?;
        let copy = plugins.join(module.file_name().unwrap_or_default());
        fs::copy(&module, &copy)?;
        load(&copy, Some(&cache(directory)))?;
    }
    Ok(plugins)
}

/// The folder `plugins` of the repository: `cargo run` names it, else it is above this program.
fn sources() -> Option<PathBuf> {
    let named = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let program = env::current_exe().ok();
    let starts = [named, program];
    let above = starts.iter().flatten().flat_map(|start| start.ancestors());
    let has_all = |plugins: &PathBuf| {
        CRATES.iter().all(|name| plugins.join(name).join("Cargo.toml").is_file())
    };
    above.map(|directory| directory.join("plugins")).find(has_all)
}

fn is_cargo_here() -> bool {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Command::new(cargo).arg("--version").output().is_ok_and(|done| done.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory, and two functions: that the ABI is 0.2.1, and `malloc`.
    const SMALLEST: &[u8] = b"\0asm\x01\0\0\0\
        \x01\x09\x02\x60\0\0\x60\x01\x7f\x01\x7f\
        \x03\x03\x02\0\x01\
        \x05\x03\x01\0\x01\
        \x07\x2d\x03\x06memory\x02\0\x17proxy_abi_version_0_2_1\0\0\x06malloc\0\x01\
        \x0a\x09\x02\x02\0\x0b\x04\0\x41\0\x0b";

    #[test]
    fn the_sources_are_above_the_program() {
        let plugins = sources().unwrap();
        assert!(plugins.join("Cargo.toml").is_file(), "{}", plugins.display());
    }

    #[test]
    fn modules_are_put_where_sidecars_look() {
        let directory = tempfile::tempdir().unwrap();
        let module = directory.path().join("a.wasm");
        fs::write(&module, SMALLEST).unwrap();
        let plugins = install(&[module], directory.path()).unwrap();
        assert_eq!(fs::read(plugins.join("a.wasm")).unwrap(), SMALLEST);
        assert!(fs::read_dir(cache(directory.path())).unwrap().count() > 0, "compiled");
    }
}
