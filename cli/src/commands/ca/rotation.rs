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
/// Names in a line.
const MAX_NAMED: usize = 4;
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
        let Some(step) = next(status.step.as_deref(), begun) else { return Ok(status) };
        match client.rotate(step, false).await {
            Ok(status) => {
                tell(&taken(step, &status))?;
                begun = true;
                waiting.clear();
            }
            Err(api_client::Error::Refused(refusal)) if refusal.code == NOT_YET => {
                let line = format!("     {}", waiting_for(&status, &refusal.message));
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
fn next(state: Option<&str>, begun: bool) -> Option<Step> {
    match (state, begun) {
        (Some("added"), _) => Some(Step::Switch),
        (Some("switched"), _) => Some(Step::Drop),
        (_, false) => Some(Step::Add),
        (_, true) => None,
    }
}

fn taken(step: Step, status: &Status) -> String {
    let signer = status.signer().map(|root| short(&root.fingerprint)).unwrap_or_default();
    let other = status.roots.iter().find(|root| !root.signer);
    let other = other.map(|root| short(&root.fingerprint)).unwrap_or_default();
    match step {
        Step::Add => format!("1/3  a new root, {other}, is trusted beside {signer}"),
        Step::Switch => {
            format!("2/3  the new root, {signer}, signs: everybody gets a certificate of it")
        }
        Step::Drop => format!("3/3  the old root is trusted no longer, {signer} is the only one"),
        Step::Undo => told(status).to_owned(),
    }
}

/// For whom a step waits; `refusal` says it more generally.
fn waiting_for(status: &Status, refusal: &str) -> String {
    let Status { connected, have_bundle, waiting_for, on_other_root, .. } = status;
    if !waiting_for.is_empty() {
        let lagging = connected.saturating_sub(*have_bundle);
        return format!(
            "{have_bundle} of {connected} proxies know, waiting for {}",
            names(waiting_for, lagging)
        );
    }
    if !on_other_root.is_empty() {
        let names = names(on_other_root, on_other_root.len());
        return format!("waiting for new certificates of {names}");
    }
    refusal.to_owned()
}

/// The names that are known of `all`, and how many there are beside them.
pub fn names(known: &[String], all: usize) -> String {
    let known = known.get(..MAX_NAMED).unwrap_or(known);
    let names = known.join(", ");
    match all.saturating_sub(known.len()) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// What a state of the rotation means.
pub fn told(status: &Status) -> &str {
    match status.step.as_deref() {
        None => "none: the roots are the files that the control plane was given",
        Some("idle") => "none under way",
        Some("added") => "a new root is trusted, the old one signs: `switch` is next",
        Some("switched") => "the new root signs, the old one is still trusted: `drop` is next",
        Some(other) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_goes_on_where_it_was_left() {
        assert_eq!(next(Some("idle"), false), Some(Step::Add));
        assert_eq!(next(Some("added"), false), Some(Step::Switch));
        assert_eq!(next(Some("switched"), true), Some(Step::Drop));
        assert_eq!(next(Some("idle"), true), None);
        assert_eq!(next(None, false), Some(Step::Add), "the control plane says why it cannot");
    }

    #[test]
    fn who_is_waited_for_is_named() {
        let many: Vec<_> = (1..=9).map(|number| format!("p{number}")).collect();
        assert_eq!(names(&many, 20), "p1, p2, p3, p4 and 16 more");
        let proxies = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let mut status = Status {
            connected: 7,
            have_bundle: 4,
            waiting_for: proxies(&["shop/cart-1", "shop/user-1"]),
            ..Status::default()
        };
        let text = "4 of 7 proxies know, waiting for shop/cart-1, shop/user-1 and 1 more";
        assert_eq!(waiting_for(&status, "no"), text);
        (status.waiting_for, status.on_other_root) = (Vec::new(), proxies(&["shop/cart-1"]));
        assert_eq!(waiting_for(&status, "no"), "waiting for new certificates of shop/cart-1");
        status.on_other_root.clear();
        assert_eq!(waiting_for(&status, "no"), "no");
    }
}
