//! What there is to try, while everything stays up.

use std::{fs, path::Path, time::Duration};

use tokio::time::sleep;

use super::Voice;
use crate::demo::{
    Error,
    mesh::{Mesh, NAMESPACE},
    observation::Customer,
    process::Processes,
    resources::canary,
};

/// How often it is looked whether everything still runs.
const WATCH: Duration = Duration::from_secs(1);

pub async fn run(
    directory: &Path,
    mesh: &Mesh,
    customer: &Customer,
    processes: &mut Processes,
    narrator: &mut Voice,
) -> Result<(), Error> {
    narrator.conclude()?;
    narrator.step("Your turn")?;
    let file = directory.join("canary.yaml");
    fs::write(&file, canary(10))?;
    addresses(mesh, customer, processes, narrator)?;
    commands(mesh, &file, narrator)?;
    narrator.say("")?;
    narrator.say("Ctrl-C stops everything.")?;
    loop {
        sleep(WATCH).await;
        processes.check_alive()?;
    }
}

fn addresses(
    mesh: &Mesh,
    customer: &Customer,
    processes: &Processes,
    narrator: &mut Voice,
) -> Result<(), Error> {
    let (count, rate) = (processes.count(), customer.rate());
    narrator.say(&format!("{count} processes are up, and {rate} orders a second go on."))?;
    narrator.say("")?;
    narrator.say(&format!("control plane    {}", mesh.client.server()))?;
    narrator.say(&format!("into the mesh    http://{}  (Host: order)", mesh.customer))?;
    for (app, sidecar) in mesh.apps.iter().zip(&mesh.sidecars) {
        let instance = app.plan.instance;
        let (control, admin) = (app.control, sidecar.admin);
        narrator.say(&format!(
            "{instance:<15}  tell it to misbehave: {control}   its sidecar's admin port: {admin}"
        ))?;
    }
    narrator.say(&format!("logs             {}", processes.logs().display()))?;
    narrator.say("")?;
    Ok(())
}

fn commands(mesh: &Mesh, file: &Path, narrator: &mut Voice) -> Result<(), Error> {
    let leno = std::env::current_exe()?.display().to_string();
    let (server, roots) = (mesh.client.server(), mesh.roots.display());
    let order = mesh.sidecar("order-1")?.admin;
    // At the end of the story all orders go there.
    let newest = mesh.sidecar("order-v2-1")?.admin;
    let (customer, admin, file) = (mesh.customer, mesh.customer_admin, file.display());
    narrator.say("In another terminal:")?;
    narrator.say("")?;
    narrator.say(&format!(
        "export LENO_SERVER={server} LENO_CA_FILE={roots} LENO_NAMESPACE={NAMESPACE}"
    ))?;
    narrator.say(&format!("alias leno={leno}"))?;
    for (what, command) in [
        (
            "what is configured, and on how many proxies it is live",
            "leno get httproutes".to_owned(),
        ),
        ("is everything well: certificates, roots, what is not live", "leno check".to_owned()),
        ("what the customer's sidecar makes of it", format!("leno proxy-config routes {admin}")),
        (
            "the plugins of an order, and what they cost",
            format!("leno plugin list --admin {order}"),
        ),
        (
            "what an order's sidecar keeps of the catalogue, and how much that was of use",
            format!("leno cache stats --proxy {newest}"),
        ),
        (
            "have every sidecar forget it",
            "leno cache purge --service shop/catalogue --prefix /products".to_owned(),
        ),
        (
            "what there is in the shop, and how often product was not asked for it",
            format!("curl -i http://{customer}/products -H 'Host: order'"),
        ),
        (
            "the root of all certificates replaced, while orders go on",
            "leno ca rotate-root".to_owned(),
        ),
        (
            "the same API with Kubernetes' own tool",
            // kubectl asks for a password over TLS unless it is given a token; on this machine it needs neither.
            format!("kubectl --server=http://{} get services.leno.dev -n {NAMESPACE}", mesh.api),
        ),
        (
            "an order through the mesh",
            format!(
                "curl http://{customer}/orders -H 'Host: order' -H 'content-type: application/json' \
                 -d '{{\"user\":\"u1\",\"items\":[{{\"product\":\"p1\",\"quantity\":2}}]}}'"
            ),
        ),
        (
            "somebody who may not: 403, only order may ask user",
            format!("curl -i http://{customer}/users/u1 -H 'Host: user'"),
        ),
        (
            "a canary of your own: edit the weights, apply, look at the first again",
            format!("leno apply -f {file}"),
        ),
    ] {
        narrator.say(&format!("# {what}"))?;
        narrator.say(&command)?;
    }
    Ok(())
}
