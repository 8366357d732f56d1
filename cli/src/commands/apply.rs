//! `leno apply`: makes the control plane's resources what local files say.

use std::{io::Write, process::ExitCode, time::Duration};

use serde_json::Value;

use super::load::{FAILED, load_valid};
use crate::{
    api_client::{self, ApiClient, ApplyOptions, Refusal, ServerArgs},
    error::Error,
    files::{self, FileArgs, Manifest},
};

mod wait;

/// Create or change resources as files say
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    files: FileArgs,

    /// Only say what would happen; the control plane validates everything
    #[arg(long)]
    dry_run: bool,

    /// All or nothing: when one resource is refused, none is changed
    #[arg(long)]
    atomic: bool,

    /// Take over fields that somebody else has set
    #[arg(long)]
    force_conflicts: bool,

    /// Stay until everything is live on every proxy that uses it, or fail after so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "10")]
    #[arg(conflicts_with = "dry_run", require_equals = true)]
    wait: Option<u32>,

    #[command(flatten)]
    server: ServerArgs,
}

/// What became of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Configured,
    Unchanged,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

pub async fn run(args: &ApplyArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let Some(mut manifests) = load_valid(&args.files, "nothing was applied")? else {
        return Ok(FAILED);
    };
    files::sort_for_apply(&mut manifests);
    let client = ApiClient::new(&args.server)?;
    let options = ApplyOptions { dry_run: args.dry_run, force: args.force_conflicts };
    let applied = match args.atomic {
        true => apply_together(&client, &manifests, options, out).await?,
        false => apply_each(&client, &manifests, options, out).await?,
    };
    let live = match (applied, args.wait) {
        (true, Some(seconds)) => {
            let limit = Duration::from_secs(seconds.into());
            wait::until_live(&client, &manifests, limit, out).await?
        }
        (applied, _) => applied,
    };
    Ok(if live { ExitCode::SUCCESS } else { FAILED })
}

/// Applies one resource and tells what became of it, and what the API warns of.
pub async fn apply_one(
    client: &ApiClient,
    manifest: &Manifest,
    options: ApplyOptions,
) -> Result<(Outcome, Vec<String>), api_client::Error> {
    let (kind, name) = (manifest.resource.kind, manifest.resource.name());
    let before = client.get(kind, &name).await?;
    let answer = client.apply(kind, &name, &manifest.body(), options).await?;
    let outcome = match &before {
        None => Outcome::Created,
        Some(before) if same_content(before, &answer.object) => Outcome::Unchanged,
        Some(_) => Outcome::Configured,
    };
    Ok((outcome, answer.warnings))
}

async fn apply_each(
    client: &ApiClient,
    manifests: &[Manifest],
    options: ApplyOptions,
    out: &mut impl Write,
) -> Result<bool, Error> {
    let mut refused = 0;
    for manifest in manifests {
        match apply_one(client, manifest, options).await {
            Ok((outcome, warnings)) => {
                writeln!(out, "{}", told(manifest, outcome.word(), options.dry_run))?;
                warn(manifest, &warnings);
            }
            Err(api_client::Error::Refused(refusal)) if goes_on(&refusal) => {
                refused += 1;
                print_refusal(std::slice::from_ref(manifest), &refusal);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if refused > 0 {
        let all = manifests.len();
        eprintln!("{refused} of {all} refused; the others are as the files say");
    }
    Ok(refused == 0)
}

async fn apply_together(
    client: &ApiClient,
    manifests: &[Manifest],
    options: ApplyOptions,
    out: &mut impl Write,
) -> Result<bool, Error> {
    let bodies = manifests.iter().map(Manifest::body).collect();
    let applied = match client.apply_atomically(bodies, options).await {
        Ok(applied) => applied,
        Err(api_client::Error::Refused(refusal)) if goes_on(&refusal) => {
            print_refusal(manifests, &refusal);
            eprintln!("nothing was applied");
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    for (manifest, one) in manifests.iter().zip(&applied) {
        writeln!(out, "{}", told(manifest, &one.outcome, options.dry_run))?;
        warn(manifest, &one.warnings);
    }
    Ok(true)
}

/// Whether a refusal is about what was sent, rather than about who sent it.
fn goes_on(refusal: &Refusal) -> bool {
    api_client::Error::Refused(refusal.clone()).is_about_one_resource()
}

/// `Service shop/order created`.
fn told(manifest: &Manifest, outcome: &str, dry_run: bool) -> String {
    let only = if dry_run { " (dry run)" } else { "" };
    format!("{} {outcome}{only}", manifest.resource.key())
}

fn warn(manifest: &Manifest, warnings: &[String]) {
    for warning in warnings {
        // `spec.rules[0]: there is no Service ...` where the API knows the place.
        let (path, message) = match warning.split_once(": ") {
            Some((path, message)) if is_path(path) => (path, message),
            _ => ("", warning.as_str()),
        };
        eprintln!("warning: {}", manifest.locate(path, message));
    }
}

fn is_path(text: &str) -> bool {
    ["spec", "metadata"].iter().any(|root| {
        text.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }) && !text.contains(' ')
}

/// Says what the API found wrong, at the places in the files where it stands. Of several manifests sent
/// together, `[2].spec.name` is about the third.
fn print_refusal(manifests: &[Manifest], refusal: &Refusal) {
    for line in refusal_lines(manifests, refusal) {
        eprintln!("error: {line}");
    }
}

pub fn refusal_lines(manifests: &[Manifest], refusal: &Refusal) -> Vec<String> {
    let located = refusal.causes().iter().filter_map(|cause| {
        let (manifest, path) = match (indexed(&cause.field), manifests) {
            (Some((index, path)), _) => (manifests.get(index)?, path),
            // Kubernetes writes the owners' fields as `.spec.x`.
            (None, [only]) => (only, cause.field.trim_start_matches('.')),
            (None, _) => return None,
        };
        Some(manifest.locate(path, &cause.message).to_string())
    });
    let mut lines: Vec<_> = located.collect();
    if lines.is_empty() {
        lines.push(match manifests {
            [only] => only.locate("", &refusal.to_string()).to_string(),
            _ => refusal.to_string(),
        });
    }
    if refusal.is_about_owners() {
        lines.push(
            "somebody else has set these fields; --force-conflicts takes them over".to_owned(),
        );
    }
    lines
}

/// `[2].spec.name` as 2 and `spec.name`.
fn indexed(field: &str) -> Option<(usize, &str)> {
    let (index, rest) = field.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest.strip_prefix('.').unwrap_or(rest)))
}

/// Whether two states of an object mean the same; versions and owners of fields do not count.
fn same_content(a: &Value, b: &Value) -> bool {
    let part = |value: &Value, pointer: &str| value.pointer(pointer).cloned();
    ["/spec", "/metadata/labels", "/metadata/annotations"]
        .iter()
        .all(|pointer| part(a, pointer) == part(b, pointer))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use super::*;

    const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules:
  - backendRefs:
    - {name: orders, port: 80}
";

    fn refusal(causes: Value) -> Refusal {
        let status =
            json!({"kind": "Status", "message": "no", "code": 422, "details": {"causes": causes}});
        Refusal::read(StatusCode::UNPROCESSABLE_ENTITY, &status).unwrap()
    }

    #[test]
    fn a_refusal_is_told_at_the_line_it_is_about() {
        let manifests = files::parse("a.yaml", ROUTE).manifests;
        let refusal =
            refusal(json!([{"field": "spec.rules[0].backendRefs[0].port", "message": "is taken"}]));
        let lines = refusal_lines(&manifests, &refusal);
        assert_eq!(lines, ["a.yaml:8: spec.rules[0].backendRefs[0].port: is taken"]);
    }

    #[test]
    fn of_several_it_names_the_right_one() {
        let mut manifests = files::parse("a.yaml", ROUTE).manifests;
        manifests.extend(files::parse("b.yaml", ROUTE).manifests);
        let lines = refusal_lines(
            &manifests,
            &refusal(json!([{"field": "[1].spec.rules", "message": "x"}])),
        );
        assert_eq!(lines, ["b.yaml:6: spec.rules: x"]);
        let lines =
            refusal_lines(&manifests, &refusal(json!([{"field": "[9].spec", "message": "x"}])));
        assert_eq!(lines, ["no"], "never silent");
    }

    #[test]
    fn fields_of_other_owners_come_with_the_way_out() {
        let manifests = files::parse("a.yaml", ROUTE).manifests;
        let status = json!({"kind": "Status", "message": "no", "code": 409, "details": {"causes": [
            {"reason": "FieldManagerConflict", "field": ".spec.rules", "message": "conflict with \"kubectl\""},
        ]}});
        let refusal = Refusal::read(StatusCode::CONFLICT, &status).unwrap();
        let lines = refusal_lines(&manifests, &refusal);
        assert_eq!(lines[0], "a.yaml:6: spec.rules: conflict with \"kubectl\"");
        assert!(lines[1].contains("--force-conflicts"));
    }

    #[test]
    fn without_causes_the_message_is_told() {
        let manifests = files::parse("a.yaml", ROUTE).manifests;
        assert_eq!(refusal_lines(&manifests, &refusal(json!([]))), ["a.yaml:1: no"]);
    }

    #[test]
    fn only_what_people_write_counts_as_change() {
        let before = json!({"metadata": {"resourceVersion": "1"}, "spec": {"a": 1}});
        let after = json!({"metadata": {"resourceVersion": "2"}, "spec": {"a": 1}, "status": {}});
        assert!(same_content(&before, &after));
        assert!(!same_content(&before, &json!({"spec": {"a": 2}})));
        assert!(!same_content(
            &before,
            &json!({"metadata": {"labels": {"x": "y"}}, "spec": {"a": 1}})
        ));
    }
}
