//! Plugins in WebAssembly: they come, change and are refused while orders go on.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use http::StatusCode;
use serde_json::Value;
use tokio::{task::JoinSet, time::sleep};

use super::{LIVE_LIMIT, LOOK, Voice, apply, check_no_failure};
use crate::{
    commands::proxy_config::ask,
    demo::{
        Error,
        mesh::Mesh,
        modules::Modules,
        narrator::took,
        observation::{Customer, Observation},
        resources::{masked, misspelt, named, open, plugins},
    },
    files::Manifest,
    status::{Progress, progress},
};

/// The plugins of `examples/shop/plugins`, and an instance at which each runs.
const QUOTA: &str = "order-quota";
const NAMES: &str = "user-names";
const RUNS_AT: [(&str, &str); 2] = [(QUOTA, "order-1"), (NAMES, "user-1")];
/// Who asks user.
const CALLER: &str = "order-1";
/// It takes milliseconds, unless the machine is busy.
const LOAD_LIMIT: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(20);
/// At once, from one customer: more than all instances together take.
const ORDERS: usize = 60;
const RUSHES: u32 = 5;
const IMPATIENT: [(&str, &str); 1] = [("x-customer", "impatient")];
const MASK: &str = "hidden";

pub async fn run(
    modules: &Modules,
    mesh: &Mesh,
    customer: &Customer,
    narrator: &mut Voice,
) -> Result<(), Error> {
    narrator.step("Plugins: WebAssembly in the sidecars")?;
    match modules {
        Modules::Built(directory) => show(directory, mesh, customer, narrator).await,
        Modules::LeftOut(reason) => Ok(narrator.say(&format!("left out: {reason}"))?),
        Modules::Broken(reason) => {
            Ok(narrator.check(false, &format!("the plugins are built: {reason}"))?)
        }
    }
}

async fn show(
    directory: &Path,
    mesh: &Mesh,
    customer: &Customer,
    narrator: &mut Voice,
) -> Result<(), Error> {
    let text = plugins(directory);
    let (before, begun) = (customer.snapshot(), Instant::now());
    let unmasked = mesh.user(CALLER).await?;
    load(&text, mesh, narrator).await?;
    names(&unmasked, mesh, narrator).await?;
    quota(mesh, narrator).await?;
    swap(&text, mesh, narrator).await?;
    refuse(&text, mesh, narrator).await?;
    customer.observe(LOOK / 4).await;
    figures(mesh, narrator).await?;
    let seen = Observation { seen: customer.snapshot().since(&before), lasted: begun.elapsed() };
    check_no_failure(narrator, &seen, " meanwhile")
}

/// Both come into the traffic without an order that fails: requests pass by them until they are there.
async fn load(text: &str, mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let begun = Instant::now();
    let mut live = Vec::new();
    for text in [open(text), text.to_owned()] {
        live.clear();
        let manifests = [manifest(&text, QUOTA)?, manifest(&text, NAMES)?];
        for manifest in &manifests {
            apply(mesh, manifest).await?;
        }
        for manifest in &manifests {
            live.push(progress(&settled(mesh, manifest).await?));
        }
    }
    let elapsed = took(begun.elapsed());
    for ((name, _), progress) in RUNS_AT.iter().zip(live) {
        let (holds, message) = match progress {
            Progress::Live(message) => (true, message),
            Progress::Pending(message) | Progress::Rejected(message) => (false, message),
        };
        narrator.check(holds, &format!("{name}: {message}"))?;
    }
    Ok(narrator.say(&format!("both went live beside the traffic in {elapsed}"))?)
}

/// The answers of user have no names any more.
async fn names(before: &str, mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let now = user_named(mesh, "***").await?;
    narrator.say("order asks user for u1:")?;
    narrator.say(&format!("    before  {before}"))?;
    narrator.say(&format!("    now     {now}"))?;
    let masked = name(before).as_deref() != Some("***") && name(&now).as_deref() == Some("***");
    narrator.check(masked, "user's sidecar hides names, the service knows nothing of it")?;
    Ok(())
}

/// What user answers once it gives that name, or after a while: a sidecar that has another version says so a moment before
/// its workers use it.
async fn user_named(mesh: &Mesh, wanted: &str) -> Result<String, Error> {
    let begun = Instant::now();
    loop {
        let answer = mesh.user(CALLER).await?;
        if name(&answer).as_deref() == Some(wanted) || begun.elapsed() > LIVE_LIMIT {
            return Ok(answer);
        }
        sleep(POLL).await;
    }
}

/// What came of many orders of one customer at once.
#[derive(Default)]
struct Rush {
    taken: usize,
    refused: usize,
    /// What those were told that are refused.
    told: Option<(String, String)>,
}

impl Rush {
    fn is_limited(&self) -> bool {
        let all = self.taken + self.refused == ORDERS;
        all && self.taken > 0 && self.refused > 0 && self.told.is_some()
    }
}

async fn rush(mesh: &Mesh) -> Result<Rush, Error> {
    let mut orders = JoinSet::new();
    for _ in 0..ORDERS {
        orders.spawn(mesh.answer(&IMPATIENT));
    }
    let mut rush = Rush::default();
    while let Some(order) = orders.join_next().await {
        let answer = order.map_err(|error| Error::Unexpected(error.to_string()))??;
        let field = |name: &str| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
        match answer.status() {
            StatusCode::TOO_MANY_REQUESTS => {
                rush.refused += 1;
                let fields = field("x-ratelimit-limit").zip(field("retry-after"));
                rush.told = fields.or(rush.told);
            }
            status => rush.taken += usize::from(status.is_success()),
        }
    }
    Ok(rush)
}

/// A customer who cannot wait.
async fn quota(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let mut last = rush(mesh).await?;
    for _ in 1..RUSHES {
        if last.is_limited() {
            break;
        }
        // On a machine that takes seconds for so many they do not come at once.
        last = rush(mesh).await?;
    }
    let limited = last.is_limited();
    let Rush { taken, refused, told } = last;
    let (limit, later) = told.unwrap_or_default();
    narrator.say(&format!(
        "one customer places {ORDERS} orders at once: {taken} are taken, {refused} refused with 429 \
         (X-RateLimit-Limit: {limit}, Retry-After: {later})"
    ))?;
    narrator.check(limited, "each instance takes 10 at once from a customer, and no more")?;
    Ok(())
}

/// Another version takes over between two requests.
async fn swap(text: &str, mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let begun = Instant::now();
    let manifest = manifest(&masked(text, MASK), NAMES)?;
    apply(mesh, &manifest).await?;
    settled(mesh, &manifest).await?;
    let (answer, elapsed) = (user_named(mesh, MASK).await?, took(begun.elapsed()));
    let what = format!("another version of it is live {elapsed} later: {answer}");
    narrator.check(name(&answer) == Some(MASK.to_owned()), &what)?;
    Ok(())
}

/// A version that does not start stays out, and harms nobody.
async fn refuse(text: &str, mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let wrong = manifest(&misspelt(text), NAMES)?;
    apply(mesh, &wrong).await?;
    let refused = progress(&settled(mesh, &wrong).await?);
    let what = "one with a mistake in its configuration is not, and the status says why:";
    narrator.check(matches!(refused, Progress::Rejected(_)), what)?;
    let (Progress::Live(message) | Progress::Pending(message) | Progress::Rejected(message)) =
        refused;
    narrator.say(&format!("    {message}"))?;
    let answer = mesh.user(CALLER).await?;
    let what = "the version before it goes on";
    narrator.check(name(&answer) == Some(MASK.to_owned()), what)?;
    let right = manifest(text, NAMES)?;
    apply(mesh, &right).await?;
    settled(mesh, &right).await.map(drop)
}

/// What they cost.
async fn figures(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let mut broken = 0.0;
    for (name, instance) in RUNS_AT {
        let answer = ask(&mesh.sidecar(instance)?.admin.to_string(), "/plugins").await?;
        let of = |plugin: &&Value| {
            let found = plugin.get("name").and_then(Value::as_str);
            found.is_some_and(|found| found.ends_with(&format!("/{name}")))
        };
        let plugins = answer.get("plugins").and_then(Value::as_array);
        let found = plugins.into_iter().flatten().find(of);
        let figure = |field: &str| {
            found.and_then(|found| found.get("figures")?.get(field)?.as_f64()).unwrap_or_default()
        };
        let each = figure("milliseconds") * 1000.0 / figure("calls").max(1.0);
        broken += figure("failures");
        narrator.say(&format!(
            "{name} at {instance}: {} requests, {each:.1} us a callback, {:.1} MiB, {} failures",
            figure("exchanges"),
            figure("memoryBytes") / f64::from(1 << 20),
            figure("failures")
        ))?;
    }
    narrator.check(broken == 0.0, "none of them trapped or took too long")?;
    Ok(())
}

fn manifest(text: &str, name: &str) -> Result<Manifest, Error> {
    let missing = || Error::Unexpected(format!("there is no plugin {name} in the example"));
    named(text, name).ok_or_else(missing)
}

/// The plugin's object once every sidecar has it or refuses it; after a while as it is.
async fn settled(mesh: &Mesh, manifest: &Manifest) -> Result<Value, Error> {
    let begun = Instant::now();
    let (kind, name) = (manifest.resource.kind, manifest.resource.name());
    loop {
        let object = mesh.client.get(kind, &name).await?.unwrap_or_default();
        let done = match progress(&object) {
            Progress::Pending(_) => false,
            Progress::Live(_) => object.pointer("/status/proxies/live") != Some(&Value::from(0)),
            Progress::Rejected(_) => true,
        };
        if done || begun.elapsed() > LOAD_LIMIT {
            return Ok(object);
        }
        sleep(POLL).await;
    }
}

/// The name of the user in an answer.
fn name(answer: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    answer.get("name")?.as_str().map(str::to_owned)
}
