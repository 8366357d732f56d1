//! `leno install`: prints what is to be installed in Kubernetes.

use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use clap::Parser;
use leno_control_plane::Settings;
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

/// The flags with which the control plane will run, read as it will read them.
#[derive(Debug, clap::Parser)]
struct ControlPlane {
    #[command(flatten)]
    _settings: Settings,
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
    let flags = install::arguments(&Source::Values(values));
    let flags = flags.as_array().into_iter().flatten().filter_map(Value::as_str);
    let parsed = ControlPlane::try_parse_from(["leno-control-plane"].into_iter().chain(flags));
    let Err(error) = parsed else { return Ok(()) };
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
