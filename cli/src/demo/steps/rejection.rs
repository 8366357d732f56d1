//! Bad configuration: refused with its reason, or, where it only may be bad, said to be.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{LIVE_LIMIT, LOOK, Voice, apply, check_no_failure, status_until};
use crate::{
    api_client::{self, ApplyOptions},
    commands::apply::{apply_one, refusal_lines},
    demo::{
        Error,
        mesh::Mesh,
        observation::{Customer, Observation},
        resources::{DANGLING, MISTAKES, canary, single},
    },
    files::Manifest,
};

const FILE: &str = "canary.yaml";

pub async fn run(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step("Bad configuration")?;
    let before = customer.snapshot();
    let begun = Instant::now();
    let good = single(FILE, &canary(50)).ok_or_else(invalid)?;
    apply(mesh, &good).await?;
    let stored = spec(mesh, &good).await?;
    for (what, right, wrong) in MISTAKES {
        refuse(mesh, narrator, what, &canary(50).replacen(right, wrong, 1), &good).await?;
    }
    let unchanged = spec(mesh, &good).await? == stored;
    narrator.check(unchanged, "the route is as it was before the mistakes")?;
    dangle(mesh, customer, narrator).await?;
    let seen = Observation { seen: customer.snapshot().since(&before), lasted: begun.elapsed() };
    check_no_failure(narrator, &seen, " meanwhile")
}

/// Sends a mistake to the API, past the check that `leno apply` makes itself.
async fn refuse(
    mesh: &Mesh,
    narrator: &mut Voice,
    what: &str,
    text: &str,
    good: &Manifest,
) -> Result<(), Error> {
    let documents = leno_api::yaml::documents(text)
        .map_err(|problem| Error::Unexpected(format!("{what}: {problem}")))?;
    let Some(document) = documents.into_iter().next() else { return Err(invalid()) };
    let bad = Manifest { document, ..good.clone() };
    let (kind, name) = (good.resource.kind, good.resource.name());
    let options = ApplyOptions { dry_run: false, force: true };
    match mesh.client.apply(kind, &name, &bad.body(), options).await {
        Err(api_client::Error::Refused(refusal)) => {
            let named = !refusal.causes().is_empty();
            narrator.check(named, &format!("{what} is refused ({}):", refusal.code))?;
            for line in refusal_lines(std::slice::from_ref(&bad), &refusal) {
                narrator.say(&format!("    {line}"))?;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
        Ok(_) => Ok(narrator.check(false, &format!("{what} is refused"))?),
    }
}

/// A route to nothing is valid, since the service may come: it is stored, warned of, and answers 500.
async fn dangle(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    let manifest = single("v3.yaml", DANGLING).ok_or_else(invalid)?;
    let options = ApplyOptions { dry_run: false, force: true };
    let (_, warnings) = apply_one(&mesh.client, &manifest, options).await?;
    narrator.check(
        !warnings.is_empty(),
        "a route to a service that does not exist is stored, with a warning:",
    )?;
    for warning in &warnings {
        narrator.say(&format!("    {warning}"))?;
    }
    let status = status_of_order(mesh, 500).await?;
    let what = format!("only requests that ask for it (x-try: v3) are answered with {status}");
    narrator.check(status == 500, &what)?;
    customer.observe(LOOK / 2).await;
    mesh.client.delete(manifest.resource.kind, &manifest.resource.name(), false).await?;
    let status = status_of_order(mesh, 201).await?;
    narrator.check(status == 201, &format!("deleted, they are answered with {status} again"))?;
    Ok(())
}

/// The status for somebody who asks for v3, `wanted` or that after a while.
async fn status_of_order(mesh: &Mesh, wanted: u16) -> Result<u16, Error> {
    const POLL: Duration = Duration::from_millis(5);
    let begun = Instant::now();
    loop {
        let (status, _) = mesh.order(&[("x-try", "v3")]).await?;
        if status == wanted || begun.elapsed() > LIVE_LIMIT {
            return Ok(status);
        }
        sleep(POLL).await;
    }
}

async fn spec(mesh: &Mesh, manifest: &Manifest) -> Result<serde_json::Value, Error> {
    let object = status_until(mesh, manifest, |_| true).await?;
    Ok(object.get("spec").cloned().unwrap_or_default())
}

fn invalid() -> Error {
    Error::Unexpected("the canary's route is not valid".to_owned())
}
