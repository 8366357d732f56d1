//! The mesh starts: processes, configuration, the first order.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use comfy_table::presets;
use serde_json::Value;
use tokio::time::sleep;

use super::{Voice, apply, registered};
use crate::{
    demo::{
        Error,
        mesh::{self, Mesh, PLANS},
        narrator::took,
        process::Processes,
        resources,
    },
    table::plain,
};

/// From the last process's start until the first order is through.
const FIRST_ORDER_LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

pub async fn run(
    directory: &Path,
    processes: &mut Processes,
    narrator: &mut Voice,
) -> Result<Mesh, Error> {
    narrator.step("A control plane, an online shop, a sidecar beside every service")?;
    let begun = Instant::now();
    let control_plane = mesh::start_control_plane(processes, directory).await?;
    let api = control_plane.client.server();
    narrator.say(&format!("control plane up in {}, its API at {api}", took(begun.elapsed())))?;

    let begun = Instant::now();
    let mesh = mesh::start_shop(processes, directory, control_plane).await?;
    let (apps, sidecars, elapsed) = (mesh.apps.len(), mesh.sidecars.len(), took(begun.elapsed()));
    narrator.say(&format!("{apps} services and {sidecars} sidecars up in {elapsed}"))?;

    let begun = Instant::now();
    let loaded = resources::shop();
    for manifest in &loaded.manifests {
        apply(&mesh, manifest).await?;
    }
    let count = loaded.manifests.len();
    narrator.say(&format!(
        "{count} resources of examples/shop/mesh applied in {}",
        took(begun.elapsed())
    ))?;

    let first = first_order(&mesh, processes).await?;
    narrator.say(&format!("first order placed after {}", took(first)))?;
    show_topology(&mesh, narrator).await?;
    Ok(mesh)
}

async fn first_order(mesh: &Mesh, processes: &mut Processes) -> Result<Duration, Error> {
    let begun = Instant::now();
    loop {
        let (status, body) = mesh.order(&[]).await?;
        if status == 201 {
            return Ok(begun.elapsed());
        }
        processes.check_alive()?;
        if begun.elapsed() > FIRST_ORDER_LIMIT {
            let message = format!("no order gets through: {status} {body}");
            return Err(Error::Unexpected(message));
        }
        sleep(POLL).await;
    }
}

/// The workloads as the control plane knows them: each was registered by its sidecar.
async fn show_topology(mesh: &Mesh, narrator: &mut Voice) -> Result<(), Error> {
    let workloads = registered(mesh, PLANS.len()).await?;
    let mut table = plain(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "workload",
        "serves",
        "version",
        "speaks",
        "service at",
        "sidecar (admin) at",
    ]);
    let mut registered = 0;
    for (app, sidecar) in mesh.apps.iter().zip(&mesh.sidecars) {
        let known =
            workloads.iter().find(|found| text(found, "/metadata/name") == app.plan.instance);
        let Some(workload) = known else { continue };
        let port =
            workload.pointer(&format!("/spec/ports/{}", app.plan.port)).and_then(Value::as_u64);
        let serves = text(workload, "/spec/services/0");
        registered +=
            usize::from(serves == app.plan.service && port == Some(u64::from(app.listen.port())));
        table.add_row([
            app.plan.instance.to_owned(),
            serves.to_owned(),
            text(workload, "/metadata/labels/version").to_owned(),
            app.plan.port.to_owned(),
            app.listen.to_string(),
            format!("{} ({})", sidecar.inbound, sidecar.admin),
        ]);
    }
    narrator.show(&table.to_string())?;
    let all = PLANS.len();
    narrator.check(
        registered == all,
        &format!("{registered} of {all} workloads registered by their sidecars"),
    )?;
    Ok(())
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("-")
}
