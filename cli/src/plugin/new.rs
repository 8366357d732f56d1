//! `leno plugin new`: a crate to begin with. Its files are in `new/template`; `{{name}}` in those that end in
//! `.in` becomes the plugin's name.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::error::Error;

/// Write the crate of a new plugin, in Rust: it builds and tests at once
#[derive(Debug, clap::Args)]
pub struct NewArgs {
    /// What it is called: lower-case letters, digits and hyphens
    #[arg(value_parser = plugin_name)]
    name: String,

    /// Where to write it [default: a directory of its name]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

const TEMPLATE: [(&str, &str); 9] = [
    ("Cargo.toml", include_str!("new/template/Cargo.toml.in")),
    // So that it builds from the crates that are here, and as it was tested.
    ("Cargo.lock", include_str!("new/template/Cargo.lock.in")),
    (".gitignore", include_str!("new/template/gitignore.in")),
    ("README.md", include_str!("new/template/README.md.in")),
    ("requests.yaml", include_str!("new/template/requests.yaml")),
    ("src/lib.rs", include_str!("new/template/src/lib.rs")),
    ("src/configuration.rs", include_str!("new/template/src/configuration.rs")),
    ("src/filter.rs", include_str!("new/template/src/filter.rs")),
    ("src/policy.rs", include_str!("new/template/src/policy.rs")),
];

pub fn run(args: &NewArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let directory = args.path.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    if !is_free(&directory) {
        return Err(Error::Usage(format!("{} is there already", directory.display())));
    }
    for (file, text) in TEMPLATE {
        let path = directory.join(file);
        write(&path, &filled(text, &args.name)).map_err(|error| {
            Error::Usage(format!("{} cannot be written: {error}", path.display()))
        })?;
    }
    let shown = directory.display();
    writeln!(out, "{shown}: a plugin that builds and tests. Next:")?;
    writeln!(out, "  rustup target add wasm32-wasip1     # once")?;
    writeln!(out, "  cd {shown} && cargo test && leno plugin test")?;
    Ok(ExitCode::SUCCESS)
}

/// Cargo's rule for names, narrowed to what needs no second thought in a resource either.
fn plugin_name(text: &str) -> Result<String, String> {
    const CHARACTERS: usize = 63;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
    if begins && !text.ends_with('-') && text.chars().all(allowed) && text.len() <= CHARACTERS {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "at most {CHARACTERS} lower-case letters, digits and hyphens, a letter first, as in `my-plugin`"
        ))
    }
}

fn is_free(directory: &Path) -> bool {
    match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn filled(text: &str, name: &str) -> String {
    text.replace("{{name}}", name).replace("{{module}}", &name.replace('-', "_"))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_crates_and_resources() {
        for good in ["a", "my-plugin", "a1"] {
            assert_eq!(plugin_name(good), Ok(good.to_owned()));
        }
        for wrong in ["", "1a", "-a", "a-", "A", "a_b", "a/b", "..", &"a".repeat(64)] {
            assert!(plugin_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nothing_is_left_to_fill() {
        for (file, text) in TEMPLATE {
            let text = filled(text, "my-plugin");
            assert!(!text.contains("{{name}}") && !text.contains("{{module}}"), "{file}");
        }
    }

    #[test]
    fn what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("my-plugin");
        let args = NewArgs { name: "my-plugin".to_owned(), path: Some(path.clone()) };
        run(&args, &mut Vec::new()).unwrap();
        assert!(fs::read_to_string(path.join("Cargo.toml")).unwrap().contains("my-plugin"));
        let again = run(&args, &mut Vec::new()).unwrap_err();
        assert!(again.to_string().contains("is there already"), "{again}");
    }
}
