//! `leno diff`: what `leno apply` would change.

use std::{io::Write, process::ExitCode};

use serde_json::Value;

use super::{apply::refusal_lines, load::load_valid};
use crate::{
    api_client::{self, ApiClient, ApplyOptions, ServerArgs},
    diff::unified,
    error::Error,
    files::{self, FileArgs, Manifest},
    yaml_text::yaml_text,
};

/// As `kubectl diff` and `diff` have it: 0 no difference, 1 some, above it an error.
pub const DIFFERENT: u8 = 1;
pub const TROUBLE: u8 = 2;

/// Show what apply would change, as unified diff; exits 1 when something would, 2 on errors
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    #[command(flatten)]
    files: FileArgs,

    /// As if fields that somebody else has set were taken over
    #[arg(long)]
    force_conflicts: bool,

    #[command(flatten)]
    server: ServerArgs,
}

pub async fn run(args: &DiffArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let Some(mut manifests) = load_valid(&args.files, "nothing was compared")? else {
        return Ok(ExitCode::from(TROUBLE));
    };
    files::sort_for_apply(&mut manifests);
    let client = ApiClient::new(&args.server)?;
    let (mut different, mut refused) = (false, false);
    for manifest in &manifests {
        match difference(&client, manifest, args.force_conflicts).await {
            Ok(text) => {
                different |= !text.is_empty();
                write!(out, "{text}")?;
            }
            Err(api_client::Error::Refused(refusal)) => {
                for line in refusal_lines(std::slice::from_ref(manifest), &refusal) {
                    eprintln!("error: {line}");
                }
                refused = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(match (refused, different) {
        (true, _) => ExitCode::from(TROUBLE),
        (false, true) => ExitCode::from(DIFFERENT),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// The control plane itself says what would become of it, so that merging is not done twice.
async fn difference(
    client: &ApiClient,
    manifest: &Manifest,
    force: bool,
) -> Result<String, api_client::Error> {
    let (kind, name) = (manifest.resource.kind, manifest.resource.name());
    let before = client.get(kind, &name).await?;
    let options = ApplyOptions { dry_run: true, force };
    let mut body = manifest.body();
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        // Its status may have been written since the file was: that is no reason not to compare.
        metadata.remove("resourceVersion");
    }
    let after = client.apply(kind, &name, &body, options).await?.object;
    let key = manifest.resource.key();
    let before = before.map(|object| yaml_text(&written_by_people(object))).unwrap_or_default();
    let after = yaml_text(&written_by_people(after));
    Ok(unified(&format!("live {key}"), &format!("{} {key}", manifest.file), &before, &after))
}

/// Less what the control plane adds: it changes with every write and says nothing here.
fn written_by_people(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in [
            "managedFields",
            "resourceVersion",
            "generation",
            "uid",
            "creationTimestamp",
            "selfLink",
        ] {
            metadata.remove(field);
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn book_keeping_is_no_difference() {
        let object = json!({
            "metadata": {"name": "a", "uid": "u", "generation": 3, "managedFields": [1]},
            "spec": {"x": 1}, "status": {"y": 2},
        });
        assert_eq!(written_by_people(object), json!({"metadata": {"name": "a"}, "spec": {"x": 1}}));
    }
}
