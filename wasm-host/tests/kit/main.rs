//! The conformance kit for Proxy-Wasm hosts: a probe plugin that calls everything, 57 cases, and what
//! Envoy 1.40 was seen to do in them. `differences.rs` lists where this host does otherwise, and why.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::HashMap, time::Duration};

use leno_wasm_host::{Engine, EngineSettings, Limits, Module, Plugin, PluginSettings, Shared};

use self::{
    case::{Case, Observation, Pair},
    embedder::KitHost,
    proxy::Proxy,
};

mod case;
mod differences;
mod embedder;
mod exchange;
mod modules;
mod origin;
mod proxy;
mod services;
mod tcp;

/// Milliseconds between the start and the first request, where the case does not say.
const SETTLE: u64 = 150;

#[test]
fn every_case_is_as_in_envoy_or_better() {
    let settings = EngineSettings { parallel_compilation: true, ..EngineSettings::default() };
    let engine = Engine::new(settings).unwrap();
    let modules = modules::build_all(&engine);
    let cases = Case::load_all();
    assert_eq!(cases.len(), 57);
    let only = std::env::var("KIT_ONLY").ok();
    let mut wrong = Vec::new();
    for case in cases.iter().filter(|case| only.as_ref().is_none_or(|only| case.name == *only)) {
        let seen = run(case, &modules);
        let complaints = differences::complaints(case, &seen);
        println!("{} {}", if complaints.is_empty() { "same" } else { "DIFF" }, case.name);
        wrong.extend(complaints.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

/// What was seen in a case.
pub struct Seen {
    pub started: bool,
    pub startup_logs: Vec<Pair>,
    pub observations: Vec<Observation>,
    /// For cases with parallel requests: what each client saw.
    pub clients: Vec<Vec<case::Client>>,
    pub faults: Vec<leno_wasm_host::Fault>,
}

fn plugins(case: &Case, modules: &HashMap<String, Module>) -> Vec<Plugin<KitHost>> {
    let shared = Shared::default();
    // Only two cases are about the deadline; the others must not fail because the machine is busy.
    let limits = match &case.name[..] {
        "fault_loop" | "fault_spin" => Limits::default(),
        _ => Limits { deadline: Duration::from_secs(60), ..Limits::default() },
    };
    let environment: Vec<_> = case.env.clone().into_iter().collect();
    let first = PluginSettings {
        name: case.plugin_name.clone().unwrap_or_else(|| "oracle".to_owned()),
        root_id: case.root_id.clone(),
        vm_id: case.vm_id.clone(),
        configuration: case.config.clone().into_bytes(),
        vm_configuration: case.vm_config.clone().into_bytes(),
        environment,
        limits: limits.clone(),
        shared: shared.clone(),
        ..PluginSettings::default()
    };
    let more = case.extra_plugins.iter().map(|extra| {
        let settings = PluginSettings {
            name: extra.plugin_name.clone().unwrap_or_default(),
            root_id: extra.root_id.clone(),
            vm_id: extra.vm_id.clone(),
            configuration: extra.config.clone().into_bytes(),
            limits: limits.clone(),
            shared: shared.clone(),
            ..PluginSettings::default()
        };
        Plugin::new(&modules[&extra.wasm], settings).unwrap()
    });
    [Plugin::new(&modules[&case.wasm], first).unwrap()].into_iter().chain(more).collect()
}

fn run(case: &Case, modules: &HashMap<String, Module>) -> Seen {
    let mut proxy = Proxy::new(case, plugins(case, modules));
    let started = proxy.start().is_ok();
    let mut seen = Seen {
        started,
        startup_logs: Vec::new(),
        observations: Vec::new(),
        clients: Vec::new(),
        faults: Vec::new(),
    };
    if !started {
        seen.startup_logs = proxy.log.take();
        return seen;
    }
    proxy.run_for(case.settle_ms.unwrap_or(SETTLE));
    let tcp = case.kind.as_deref() == Some("tcp");
    if tcp {
        // The kit connects once to see whether the proxy listens.
        tcp::connection(proxy.filters[0].instance.as_mut().unwrap(), &[]);
    }
    seen.startup_logs = proxy.log.take();
    proxy.callouts.clear();
    for request in &case.requests {
        let mut observation = if tcp {
            tcp::connection(proxy.filters[0].instance.as_mut().unwrap(), &request.tcp)
        } else {
            let (observation, clients) = http(&mut proxy, request);
            seen.clients.push(clients);
            observation
        };
        observation.logs = proxy.log.take();
        seen.observations.push(observation);
    }
    seen.faults = std::mem::take(&mut proxy.faults);
    seen
}

fn http(proxy: &mut Proxy<'_>, request: &case::Request) -> (Observation, Vec<case::Client>) {
    proxy.run_for(request.pre_wait_ms.unwrap_or(0));
    let mut numbers = Vec::new();
    if request.parallel.is_empty() {
        numbers.push(proxy.request(request, 0));
    }
    for parallel in &request.parallel {
        numbers.push(proxy.request(parallel, parallel.start_delay_ms.unwrap_or(0)));
    }
    proxy.run_until_done();
    // What a plugin does when the answer is out still belongs to the request.
    proxy.run_for(request.wait_after_ms.unwrap_or(0).max(60));
    let clients: Vec<_> = numbers.iter().map(|x| proxy.exchanges[*x].client.clone()).collect();
    let observation = Observation {
        client: clients.first().cloned(),
        origin: std::mem::take(&mut proxy.origin),
        callouts: std::mem::take(&mut proxy.callouts),
        ..Observation::default()
    };
    (observation, clients)
}
