//! `leno install`: prints what is to be installed in Kubernetes.

use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use clap::Parser;
use leno_control_plane::{Settings, inject};
use serde_json::Value;

use crate::{
    error::Error,
    install::{self, Source, Values, chart},
    yaml_text::yaml_text,
};

/// Print what is to be installed in Kubernetes: `leno install | kubectl apply --server-side -f -`
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// A setting, as the chart's values.yaml names it: webhook.failurePolicy=Ignore. May be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,

    /// A YAML file with settings. May be repeated; later ones win, and --set wins over all
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// How to print it
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: Output,

    /// Write the templates of the Helm chart in this folder instead
    #[arg(long, value_name = "DIR", hide = true, conflicts_with_all = ["set", "files"])]
    chart: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Yaml,
    Json,
}

/// What settings decide, read as the control plane will read it.
#[derive(Debug, clap::Parser)]
struct ControlPlane {
    #[command(flatten)]
    _settings: Settings,
}

/// What it will put into pods.
#[derive(Debug, clap::Parser)]
struct Sidecars {
    #[command(flatten)]
    _settings: inject::Settings,
}

pub fn run(args: &InstallArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    if let Some(folder) = &args.chart {
        return write_chart(&folder.join("templates"));
    }
    let files: Result<Vec<_>, Error> = args.files.iter().map(read).collect();
    let values =
        Values::new(&files?, &args.set).map_err(|error| Error::Usage(error.to_string()))?;
    check_flags(&values)?;
    print(&install::manifests(&values), args.output, out)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &PathBuf) -> Result<(String, String), Error> {
    let name = path.display().to_string();
    let text =
        fs::read_to_string(path).map_err(|error| Error::Usage(format!("{name}: {error}")))?;
    Ok((name, text))
}

/// Whatever the schema does not say, the control plane would say at its start; better now.
fn check_flags(values: &Values) -> Result<(), Error> {
    let source = Source::Values(values);
    refuse(ControlPlane::try_parse_from(words(install::wished(&source))).err())?;
    // As flags: those that they are the variables of.
    let flag = |name: &str| name.trim_start_matches("LENO_").to_lowercase().replace('_', "-");
    let flags =
        install::SIDECARS.map(|(name, text)| format!("--{}={}", flag(name), source.text(text)));
    refuse(Sidecars::try_parse_from(words(flags)).err())
}

fn words<const N: usize>(flags: [String; N]) -> impl Iterator<Item = String> {
    std::iter::once("leno-control-plane".to_owned()).chain(flags)
}

fn refuse(error: Option<clap::Error>) -> Result<(), Error> {
    let Some(error) = error else { return Ok(()) };
    let text = error.to_string();
    // What follows is about usage of a command that nobody typed.
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    Err(Error::Usage(format!("the control plane would not start: {first}")))
}

fn print(manifests: &[Value], output: Output, out: &mut impl Write) -> Result<(), Error> {
    match output {
        Output::Yaml => {
            for manifest in manifests {
                write!(out, "---\n{}", yaml_text(manifest))?;
            }
        }
        Output::Json => {
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": manifests});
            writeln!(out, "{list:#}")?;
        }
    }
    Ok(())
}

fn write_chart(folder: &std::path::Path) -> Result<ExitCode, Error> {
    for (name, text) in chart::templates() {
        let path = folder.join(name);
        fs::write(&path, text)
            .map_err(|error| Error::Usage(format!("{}: {error}", path.display())))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// What settings decide is read whenever something is printed; the rest is the same for everybody, and read here.
    #[test]
    fn the_control_plane_knows_every_flag() {
        let sets = ["ca.secret=mesh-ca".to_owned()];
        let values = Values::new(&[], &sets).unwrap();
        let manifests = install::manifests(&values);
        let deployment = manifests.iter().find(|manifest| manifest["kind"] == "Deployment");
        let container = deployment.unwrap().pointer("/spec/template/spec/containers/0").unwrap();
        let flags = container["args"].as_array().unwrap().iter().map(|flag| flag.as_str().unwrap());
        let words = std::iter::once("leno-control-plane").chain(flags);
        if let Err(error) = ControlPlane::try_parse_from(words) {
            panic!("{error}");
        }
        let known = Sidecars::command();
        let known: Vec<_> = known.get_arguments().filter_map(|known| known.get_env()).collect();
        for (name, _) in install::SIDECARS {
            assert!(known.iter().any(|variable| *variable == name), "{name}");
        }
    }
}
