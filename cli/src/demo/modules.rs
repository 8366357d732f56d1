//! The modules of the shop's plugins, built from the repository that this program comes from.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::plugin::module_of;

/// Their crates in `plugins/`.
const CRATES: [&str; 2] = ["caller-quota", "mask-json"];

/// What there is to show plugins with.
pub enum Modules {
    /// Files that end in `.wasm`.
    Built(Vec<PathBuf>),
    /// Why there are none, though nothing is wrong.
    LeftOut(String),
    /// Why they could not be built.
    Broken(String),
}

impl Modules {
    /// Has cargo build what is not built yet. Takes a few seconds the first time; cargo says what it does on standard
    /// error.
    pub fn build() -> Self {
        let Some(plugins) = sources() else {
            let reason = "Leno's sources are not here, so the plugins cannot be built";
            return Self::LeftOut(reason.to_owned());
        };
        if !is_cargo_here() {
            return Self::LeftOut("cargo is not here, so the plugins cannot be built".to_owned());
        }
        eprintln!("building the plugins of the shop in {}", plugins.display());
        let built: Result<_, _> =
            CRATES.iter().map(|name| module_of(&plugins.join(name))).collect();
        built.map_or_else(|error| Self::Broken(error.to_string()), Self::Built)
    }

    /// As on a machine where somebody has put them: copies in `directory`.
    pub fn install(files: &[PathBuf], directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        for file in files {
            let name = file.file_name().unwrap_or_default();
            fs::copy(file, directory.join(name))?;
        }
        Ok(())
    }
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

    #[test]
    fn the_sources_are_above_the_program() {
        let plugins = sources().unwrap();
        assert!(plugins.join("Cargo.toml").is_file(), "{}", plugins.display());
    }

    #[test]
    fn modules_are_put_where_sidecars_look() {
        let directory = tempfile::tempdir().unwrap();
        let module = directory.path().join("a.wasm");
        fs::write(&module, "x").unwrap();
        let there = directory.path().join("there");
        Modules::install(&[module], &there).unwrap();
        assert_eq!(fs::read(there.join("a.wasm")).unwrap(), b"x");
    }
}
