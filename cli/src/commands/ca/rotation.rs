//! Replaces the root in three steps, each of which waits until every proxy is ready for it. The control plane keeps how
//! far it is, so that anybody can go on from there, or back.

use std::{io, time::Duration};

use tokio::time::sleep;

use super::short;
use crate::{
    api_client::{
        self, ApiClient,
        authority::{Status, Step},
    },
    error::Error,
};

/// How often it is tried whether the proxies are ready.
const POLL: Duration = Duration::from_millis(200);
/// The control plane says no for now.
const NOT_YET: u16 = 409;

pub const HOW_TO_GO_ON: &str = "\
`leno ca status` says how far it is; `leno ca rotate-root` goes on from there, with --undo one step back";

/// Takes every step that is left, or all of them where none was taken; tells each, and for whom it waits.
pub async fn replace_root(
    client: &ApiClient,
    mut tell: impl FnMut(&str) -> io::Result<()>,
) -> Result<Status, Error> {
    let mut begun = false;
    let mut waiting = String::new();
    loop {
        client.learn_roots().await?;
        let status = client.ca_status().await?;
        let Some(step) = next(&status.step, begun) else { return Ok(status) };
        match client.rotate(step, false).await {
            Ok(status) => {
                tell(&taken(step, &status))?;
                begun = true;
                waiting.clear();
            }
            Err(api_client::Error::Refused(refusal)) if refusal.code == NOT_YET => {
                let line = format!("     {}", refusal.message);
                if line != waiting {
                    tell(&line)?;
                    waiting = line;
                }
                sleep(POLL).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What comes after a state; `None` when the rotation is complete.
fn next(state: &str, begun: bool) -> Option<Step> {
    match (state, begun) {
        ("added", _) => Some(Step::Switch),
        ("switched", _) => Some(Step::Drop),
        (_, false) => Some(Step::Add),
        (_, true) => None,
    }
}

fn taken(step: Step, status: &Status) -> String {
    let signer = status.signer().map(|root| short(&root.fingerprint)).unwrap_or_default();
    let other = status.roots.iter().find(|root| !root.signer);
    let other = other.map(|root| short(&root.fingerprint)).unwrap_or_default();
    match step {
        Step::Add => {
            format!("1/3  a new root, {other}, goes to every proxy, to be trusted beside {signer}")
        }
        Step::Switch => {
            format!("2/3  the new root, {signer}, signs; every proxy gets a certificate of it")
        }
        Step::Drop => format!("3/3  the old root is trusted no longer; {signer} is the only one"),
        Step::Undo => told(&status.step).to_owned(),
    }
}

/// What a state of the rotation means.
pub fn told(state: &str) -> &str {
    match state {
        "idle" => "none under way",
        "added" => "a new root is trusted, the old one signs: `switch` is next",
        "switched" => "the new root signs, the old one is still trusted: `drop` is next",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_goes_on_where_it_was_left() {
        assert_eq!(next("idle", false), Some(Step::Add));
        assert_eq!(next("added", false), Some(Step::Switch));
        assert_eq!(next("switched", true), Some(Step::Drop));
        assert_eq!(next("idle", true), None);
    }
}
