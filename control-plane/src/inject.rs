//! The sidecar beside the containers of a pod: what is added to a manifest, and taken out again. Pure: the same
//! functions serve `leno inject` and the webhook.
//!
//! ```text
//! document ─▶ workload.rs (where its pods are) ─▶ wishes.rs (labels, annotations) ─▶ obstacles.rs ─▶ sidecar.rs ─▶ record.rs
//! ```
//!
//! Manifests stay JSON values, so that fields nobody here knows are kept as they are.
//!
//! - [`names`]: every name that others share
//! - `wishes.rs`: what one pod asks for
//! - `obstacles.rs`: what a sidecar cannot stand beside
//! - `sidecar.rs`: containers and volumes that are added; `probes.rs`: probes that go through the sidecar
//! - `record.rs`: what was done, so that it can be undone
//! - [`review`]: `AdmissionReview` in, `AdmissionReview` out

mod manifest;
pub mod names;
mod obstacles;
mod probes;
mod record;
pub mod review;
mod sidecar;
#[cfg(test)]
mod tests;
mod wishes;
mod workload;

use leno_api::{Invalid, model::duration};
use serde_json::Value;

use self::{record::Record, workload::Template};

/// What the sidecars of a mesh have in common.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
// Whoever flattens it into settings of the same name would have two groups of one name.
#[group(skip)]
pub struct Settings {
    /// What image names begin with: PREFIX/proxy:VERSION
    #[arg(long, env = "LENO_IMAGE_PREFIX", default_value = names::IMAGE_PREFIX, value_name = "PREFIX")]
    pub image_prefix: String,
    /// The version of the images
    #[arg(long, env = "LENO_IMAGE_TAG", default_value = env!("CARGO_PKG_VERSION"), value_name = "VERSION")]
    pub image_tag: String,
    /// Where sidecars find the control plane
    #[arg(long, env = "LENO_SIDECAR_CONTROL_PLANE", default_value = names::CONTROL_PLANE_XDS, value_name = "HOST:PORT")]
    pub sidecar_control_plane: String,
    /// Whether sidecars are init containers that stay (Kubernetes 1.29 and later), unless a pod says otherwise
    #[arg(long, env = "LENO_NATIVE_SIDECAR", default_value = "true", value_name = "true|false", action = clap::ArgAction::Set)]
    pub native_sidecar: bool,
    /// Who writes the rules that lead connections through the sidecar, unless a pod says otherwise
    #[arg(long, env = "LENO_REDIRECT", default_value = "init", value_enum, value_name = "WHO")]
    pub redirect: Redirect,
    /// How long a sidecar finishes what is under way, unless a pod says otherwise
    #[arg(long, env = "LENO_SIDECAR_DRAIN", default_value = "20s", value_parser = drain_time, value_name = "TIME")]
    pub sidecar_drain: u32,
}

/// Who writes the rules that lead connections through the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Redirect {
    /// An init container, with the capabilities for it.
    Init,
    /// A network plugin on each node.
    Cni,
    /// Nobody: the application calls its sidecar by itself.
    None,
}

/// Longest time that a sidecar may take to finish, in seconds: longer, and no pod ends within an hour.
const MAX_DRAIN: u64 = 3600;

/// What became of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The sidecar was added; with the version of one it replaces.
    Injected {
        /// Of the sidecar that was there.
        replaced: Option<String>,
    },
    /// This version's sidecar is there already.
    Unchanged,
    /// Nothing was done, and why.
    LeftAlone(String),
}

/// What became of one workload of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `Deployment shop/orders`.
    pub workload: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What somebody should know, each with its place.
    pub warnings: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image_prefix: names::IMAGE_PREFIX.to_owned(),
            image_tag: env!("CARGO_PKG_VERSION").to_owned(),
            sidecar_control_plane: names::CONTROL_PLANE_XDS.to_owned(),
            native_sidecar: true,
            redirect: Redirect::Init,
            sidecar_drain: 20,
        }
    }
}

/// Puts the sidecar into every pod that `document` describes: a pod, a workload with a template, or a `List` of such.
/// One verdict for each; none for a document that has no pods.
///
/// # Errors
/// What stands in the way, each with its place. The document is then as it was.
pub fn inject(document: &mut Value, settings: &Settings) -> Result<Vec<Verdict>, Invalid> {
    each(document, |template, warnings| inject_pod(template, settings, warnings))
}

/// Takes out what [`inject`] put in, so that the document is what it was before.
///
/// # Errors
/// When the record of what was done cannot be read. The document is then as it was.
pub fn uninject(document: &mut Value) -> Result<Vec<Verdict>, Invalid> {
    each(document, |template, _| match Record::read(template)? {
        None => Ok(Outcome::LeftAlone("it has no sidecar of ours".to_owned())),
        Some(record) => {
            record.undo(template)?;
            Ok(Outcome::Injected { replaced: Some(record.version) })
        }
    })
}

/// Does something with each template, or with none.
fn each(
    document: &mut Value,
    mut work: impl FnMut(&mut Template<'_>, &mut Vec<String>) -> Result<Outcome, Invalid>,
) -> Result<Vec<Verdict>, Invalid> {
    let mut changed = document.clone();
    let mut verdicts = Vec::new();
    workload::each(&mut changed, &mut |mut template| {
        let mut warnings = Vec::new();
        let outcome = work(&mut template, &mut warnings)?;
        verdicts.push(Verdict { workload: template.workload, outcome, warnings });
        Ok(())
    })?;
    *document = changed;
    Ok(verdicts)
}

fn inject_pod(
    template: &mut Template<'_>,
    settings: &Settings,
    warnings: &mut Vec<String>,
) -> Result<Outcome, Invalid> {
    if let Some(reason) = wishes::opted_out(template)? {
        return Ok(Outcome::LeftAlone(reason));
    }
    let before = Record::read(template)?;
    if let Some(record) = before.as_ref().filter(|record| record.version == settings.image_tag) {
        let wishes = wishes::read(template, settings, &mut Vec::new())?;
        return match sidecar::catch_up(template, &wishes, record.clone(), warnings)? {
            true => Ok(Outcome::Injected { replaced: Some(settings.image_tag.clone()) }),
            false => Ok(Outcome::Unchanged),
        };
    }
    if let Some(record) = &before {
        record.undo(template)?;
    }
    if let Some(reason) = obstacles::unfit(template)? {
        return Ok(Outcome::LeftAlone(reason));
    }
    let wishes = wishes::read(template, settings, warnings)?;
    obstacles::check(template)?;
    sidecar::add(template, &wishes, settings, warnings)?;
    Ok(Outcome::Injected { replaced: before.map(|record| record.version) })
}

/// Seconds of a time such as `30s`.
fn drain_time(text: &str) -> Result<u32, String> {
    let seconds = duration::parse(text)?.as_secs();
    if (1..=MAX_DRAIN).contains(&seconds) {
        return u32::try_from(seconds).map_err(|error| error.to_string());
    }
    Err(format!("must be 1s to {MAX_DRAIN}s"))
}
