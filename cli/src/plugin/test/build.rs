//! From a crate to its module.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::error::Error;

/// The target for which plugins are built.
const TARGET: &str = "wasm32-wasip1";

/// The module at a path: the file itself, or what the crate in that directory is built to.
pub fn module_of(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let manifest = path.join("Cargo.toml");
    let manifest = manifest.canonicalize().map_err(|_| {
        let hint = "name a .wasm file, or the directory of a plugin's crate";
        Error::Usage(format!("{} has no Cargo.toml: {hint}", path.display()))
    })?;
    // As cargo itself sets it for what it runs: then the very same one builds.
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(&cargo)
        // Which toolchain builds it, and with which settings, is said beside it and not where somebody happens to be.
        .current_dir(path)
        .args(["build", "--release", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics", "--manifest-path"])
        .arg(&manifest)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Error::Usage(format!("{} cannot be run: {error}", cargo.display())))?;
    if !built.status.success() {
        let hint = format!("if the target is missing: rustup target add {TARGET}");
        return Err(Error::Usage(format!("{} was not built; {hint}", path.display())));
    }
    let messages = String::from_utf8_lossy(&built.stdout);
    find_module(&messages, &manifest).ok_or_else(|| {
        let hint = "set crate-type = [\"cdylib\"] under [lib]";
        Error::Usage(format!("{} makes no module: {hint}", manifest.display()))
    })
}

/// What cargo says that this crate's library was built to.
fn find_module(messages: &str, manifest: &Path) -> Option<PathBuf> {
    let of_crate = |message: &Value| {
        let at = message.get("manifest_path").and_then(Value::as_str);
        at.is_some_and(|at| Path::new(at) == manifest)
    };
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(of_crate)
        .filter_map(|message| message.get("filenames")?.as_array().cloned())
        .flatten()
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .rfind(|file| file.extension().is_some_and(|extension| extension == "wasm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crates_own_module_is_found() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/r/Cargo.toml","filenames":["/t/r.wasm"]}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","filenames":["/t/a.rlib","/t/a.wasm"]}"#,
            "\nnot json\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = |manifest: &str| find_module(messages, Path::new(manifest));
        assert_eq!(found("/a/Cargo.toml"), Some(PathBuf::from("/t/a.wasm")));
        assert_eq!(found("/b/Cargo.toml"), None);
    }
}
