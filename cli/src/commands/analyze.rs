//! `leno analyze`: what is wrong or odd about local files, found by the parser that the proxy uses, without
//! any control plane.

use std::{io::Write, process::ExitCode};

use leno_api::analyze;
use serde_json::json;

use crate::{
    error::Error,
    files::{self, FileArgs, Loaded, Located},
};

/// Check resources in files: what the proxy would refuse (errors) and what has no effect (warnings)
#[derive(Debug, clap::Args)]
pub struct AnalyzeArgs {
    #[command(flatten)]
    files: FileArgs,

    /// Fail on warnings, too
    #[arg(long)]
    strict: bool,

    /// How to print it
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Everything there is to say about a set of files, in the order of files and lines.
#[derive(Debug, Default)]
struct Report {
    resources: usize,
    messages: Vec<(Level, Located)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Error,
    Warning,
}

pub fn run(args: &AnalyzeArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let report = Report::on(files::load(&args.files)?);
    match args.output {
        Output::Text => report.print(out)?,
        Output::Json => writeln!(out, "{:#}", report.json())?,
    }
    Ok(match report.fails(args.strict) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

impl Report {
    fn on(loaded: Loaded) -> Self {
        let mut messages: Vec<_> =
            loaded.problems.into_iter().map(|problem| (Level::Error, problem)).collect();
        let resources: Vec<_> =
            loaded.manifests.iter().map(|manifest| manifest.resource.clone()).collect();
        for finding in analyze::findings_of_all(&resources) {
            // Where a resource stands twice, the finding is about the later one.
            let manifests = loaded.manifests.iter().rev();
            for manifest in manifests.filter(|found| found.resource.key() == finding.key).take(1) {
                let message = format!("{}: {}", finding.key, finding.message);
                messages.push((Level::Warning, manifest.locate(&finding.path, &message)));
            }
        }
        messages.sort_by(|(_, a), (_, b)| (&a.file, a.line).cmp(&(&b.file, b.line)));
        Self { resources: loaded.manifests.len(), messages }
    }

    fn count(&self, level: Level) -> usize {
        self.messages.iter().filter(|(found, _)| *found == level).count()
    }

    fn fails(&self, strict: bool) -> bool {
        self.count(Level::Error) > 0 || strict && self.count(Level::Warning) > 0
    }

    fn print(&self, out: &mut impl Write) -> Result<(), Error> {
        for (level, located) in &self.messages {
            writeln!(out, "{}: {located}", level.name())?;
        }
        let (errors, warnings) = (self.count(Level::Error), self.count(Level::Warning));
        let good = counted(self.resources, "valid resource");
        match (errors, warnings) {
            (0, 0) => writeln!(out, "{good}, nothing to object to")?,
            _ => writeln!(
                out,
                "{good}, {}, {}",
                counted(errors, "error"),
                counted(warnings, "warning")
            )?,
        }
        Ok(())
    }

    fn json(&self) -> serde_json::Value {
        let messages = self.messages.iter().map(|(level, located)| {
            json!({
                "level": level.name(),
                "file": &*located.file,
                "line": located.line,
                "path": located.path,
                "message": located.message,
            })
        });
        json!({
            "resources": self.resources,
            "errors": self.count(Level::Error),
            "warnings": self.count(Level::Warning),
            "messages": messages.collect::<Vec<_>>(),
        })
    }
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "\
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules:
  - backendRefs:
    - {name: orders, port: 80}
    - {name: gone, port: 80}
";

    #[test]
    fn a_reference_to_nothing_is_a_warning_with_its_place() {
        let report = Report::on(files::parse("shop.yaml", SHOP));
        let mut out = Vec::new();
        report.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let start = "warning: shop.yaml:14: spec.rules[0].backendRefs[1]: HTTPRoute shop/orders: there is no \
                     Service shop/gone";
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with("2 valid resources, 0 errors, 1 warning\n"), "{text}");
        assert!(!report.fails(false));
        assert!(report.fails(true));
    }

    #[test]
    fn an_invalid_resource_is_an_error_and_the_rest_is_still_looked_at() {
        let text = SHOP.replace("backendRefs:", "backendRef:");
        let report = Report::on(files::parse("shop.yaml", &text));
        assert_eq!((report.resources, report.count(Level::Error)), (1, 1));
        assert!(report.fails(false));
        let json = report.json();
        assert_eq!(json["messages"][0]["line"], 12);
        assert_eq!(json["messages"][0]["level"], "error");
    }

    #[test]
    fn what_is_fine_is_said_to_be() {
        let text = SHOP.replace("gone", "orders");
        let report = Report::on(files::parse("shop.yaml", &text));
        let mut out = Vec::new();
        report.print(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "2 valid resources, nothing to object to\n");
        assert!(!report.fails(true));
    }
}
