//! `leno inject`, `leno uninject`: the sidecar in manifests, and out of them again.

use std::{io::Write, process::ExitCode, sync::Arc};

use leno_api::{Invalid, yaml};
use leno_control_plane::inject::{self, Outcome, Settings, Verdict};
use serde_json::Value;

use super::load::FAILED;
use crate::{
    error::Error,
    files::{self, FileArgs, Located},
};

mod octal;
mod text;

/// Add the sidecar to manifests of pods and of what makes pods, and print them
///
/// Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs, CronJobs and Lists of such get
/// it; everything else is printed as it is. Comments are lost. What became of each stands on standard error.
#[derive(Debug, clap::Args)]
pub struct InjectArgs {
    #[command(flatten)]
    files: FileArgs,

    #[command(flatten)]
    settings: Settings,
}

/// Take the sidecar out of manifests again, and print them as they were
#[derive(Debug, clap::Args)]
pub struct UninjectArgs {
    #[command(flatten)]
    files: FileArgs,
}

pub fn run(args: &InjectArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    transform(&args.files, out, &|document| inject::inject(document, &args.settings), injected)
}

pub fn run_uninject(args: &UninjectArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    transform(&args.files, out, &inject::uninject, taken_out)
}

/// Does one or the other with every document; prints all of them, or none where something is wrong.
fn transform(
    args: &FileArgs,
    out: &mut impl Write,
    work: &dyn Fn(&mut Value) -> Result<Vec<Verdict>, Invalid>,
    say: fn(&Outcome) -> String,
) -> Result<ExitCode, Error> {
    let (mut texts, mut problems, mut said) = (Vec::new(), Vec::new(), Vec::new());
    for (file, text) in files::read_all(args)? {
        let documents = match yaml::documents(&text) {
            Ok(documents) => documents,
            Err(problem) => {
                problems.push(Located::of(&file, &problem));
                continue;
            }
        };
        // Once for all documents of a file: there may be thousands.
        let lines: Vec<&str> = text.lines().collect();
        for mut document in documents {
            octal::restore(&mut document, &lines);
            match transform_one(&document, work) {
                Ok((after, verdicts)) => {
                    texts.push(text::print(&after, &document));
                    said.extend(verdicts.into_iter().map(|verdict| (file.clone(), verdict)));
                }
                Err(invalid) => {
                    let invalid = invalid.locate(&document.lines);
                    let located =
                        invalid.problems.iter().map(|problem| Located::of(&file, problem));
                    problems.extend(located);
                }
            }
        }
    }
    if !problems.is_empty() {
        problems.iter().for_each(|problem| eprintln!("error: {problem}"));
        eprintln!("nothing was printed");
        return Ok(FAILED);
    }
    out.write_all(texts.join("---\n").as_bytes())?;
    tell(&said, say);
    Ok(ExitCode::SUCCESS)
}

fn transform_one(
    document: &yaml::Document,
    work: &dyn Fn(&mut Value) -> Result<Vec<Verdict>, Invalid>,
) -> Result<(Value, Vec<Verdict>), Invalid> {
    let mut after = document.value.clone();
    let verdicts = work(&mut after)?;
    Ok((after, verdicts))
}

fn tell(said: &[(Arc<str>, Verdict)], say: fn(&Outcome) -> String) {
    if said.is_empty() {
        eprintln!("there is no pod, and nothing that makes pods, in what -f names");
    }
    for (file, verdict) in said {
        eprintln!("{file}: {}: {}", verdict.workload, say(&verdict.outcome));
        for warning in &verdict.warnings {
            eprintln!("warning: {file}: {}: {warning}", verdict.workload);
        }
    }
}

fn injected(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Injected { replaced: None } => "injected".to_owned(),
        Outcome::Injected { replaced: Some(version) } => {
            format!("injected, in place of version {version}")
        }
        Outcome::Unchanged => {
            "unchanged: it has this version's sidecar already (leno uninject takes it out)"
                .to_owned()
        }
        Outcome::LeftAlone(reason) => format!("left alone: {reason}"),
    }
}

fn taken_out(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Injected { .. } => "taken out".to_owned(),
        Outcome::Unchanged => "unchanged".to_owned(),
        Outcome::LeftAlone(reason) => format!("left alone: {reason}"),
    }
}
