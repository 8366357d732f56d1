//! Which plugins see what, in their order.

use std::sync::Arc;

use leno_api::model::{
    service::{Service, ServicePort},
    wasm_plugin::WasmPlugin,
    workload::Workload,
};

use super::{Inputs, Own, Slots};
use crate::filter::wasm::{Chain, Slot, Unloaded};

/// What sees the calls of our application to a port of a service.
pub(super) fn outbound(
    inputs: &Inputs,
    own: &Own,
    slots: &Slots,
    service: &Service,
    port: &ServicePort,
) -> Option<Arc<Chain>> {
    let at = (&service.name, &*port.name, port.port);
    let workload = own.workload.as_deref();
    chain(inputs, slots, |plugin| {
        plugin.covers_client(&own.namespace, workload, at, inputs.services())
    })
}

/// What sees what a port of our application, reached under a service port, gets.
pub(super) fn inbound(
    inputs: &Inputs,
    slots: &Slots,
    workload: &Workload,
    (service, port, app_port): (&Service, &ServicePort, u16),
) -> Option<Arc<Chain>> {
    let at = (&service.name, &*port.name, port.port);
    chain(inputs, slots, |plugin| plugin.covers_server(workload, at, app_port, inputs.services()))
}

fn chain(
    inputs: &Inputs,
    slots: &Slots,
    covers: impl Fn(&WasmPlugin) -> bool,
) -> Option<Arc<Chain>> {
    let mut plugins: Vec<_> = inputs.plugins().values().filter(|plugin| covers(plugin)).collect();
    if plugins.is_empty() {
        return None;
    }
    plugins.sort_by(|one, other| one.precedence().cmp(&other.precedence()));
    // The phase is that of the resource in force, not of one that waits for its module.
    let slot = |plugin: &Arc<WasmPlugin>| {
        let known = slots.get(&plugin.name).cloned();
        Slot { phase: plugin.phase, ..known.unwrap_or_else(|| unknown(plugin)) }
    };
    Some(Arc::new(Chain::new(plugins.into_iter().map(slot).collect())))
}

/// Never left out: without it a request would pass where it must not.
fn unknown(plugin: &WasmPlugin) -> Slot {
    let unloaded = Unloaded {
        label: plugin.name.to_string().into(),
        reason: "not loaded yet".to_owned(),
        failure: plugin.failure,
        kind: plugin.kind,
    };
    Slot { current: Err(Arc::new(unloaded)), canary: None, phase: plugin.phase }
}
