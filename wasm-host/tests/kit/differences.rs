//! What is compared with Envoy, and the differences that are meant, each with its reason. The README of the
//! crate tells them to users; a difference that no longer is one fails the test too.

use leno_wasm_host::FaultKind;

use crate::{
    Seen,
    case::{Case, Client, Observation, Pair, Received, expand},
    embedder::text,
};

/// A request in which Envoy hangs, crashes or smuggles: what happens here instead.
struct Better {
    case: &'static str,
    request: &'static str,
    /// The body that the origin gets, in exactly one request.
    origin: &'static str,
    /// The body that the client gets, with 200.
    client: &'static str,
}

const fn better(
    case: &'static str,
    request: &'static str,
    origin: &'static str,
    client: &'static str,
) -> Better {
    Better { case, request, origin, client }
}

const POST: &str = "origin: POST /x\n";
const GET: &str = "origin: GET /x\n";

const BETTER: &[Better] = &[
    // Framing is the host's: a changed body travels whole, and nothing of it is the next request.
    better("probe_body", "set middle", "helloXX", POST),
    better("probe_body", "set prefix", "XXlloXX", POST),
    better("probe_body", "append", "helloXXXX", POST),
    better("probe_body", "start==len", "helloXXXX", POST),
    better("probe_body", "length > size", "XXXX", POST),
    better("probe_body", "remove all", "", POST),
    better("probe_body", "set and read back", "REPLACEDREPLACED", POST),
    better("probe_body", "content-length kept", "longer than beforelonger than before", POST),
    better("probe_body", "each chunk prefixed", ">hello>world>", POST),
    better("probe_body", "resp set", "", "REPLACEDREPLACED"),
    better("probe_body", "resp shrink", "", "RR"),
    // Continuing from within the callback continues, once, whether or not there is a body.
    better("probe_pause_request", "continue_stream without pause", "", GET),
    better("probe_pause_request", "cont inside callback with body", "abc", POST),
    // An answer after the end does nothing, where Envoy crashes.
    better("probe_local_in_log", "local response from on_log", "", GET),
    better("probe_local_in_log", "after", "", GET),
    better("probe_local_in_done", "local response from on_done", "", GET),
    better("probe_local_in_done", "after", "", GET),
];

/// Status and end of every client in the cases about faults: a fault costs its own request (500, or
/// nothing when failing open) and those that the instance was holding; the next one finds a new instance.
fn faults(case: &str) -> Option<(Vec<Option<u32>>, Vec<FaultKind>)> {
    use FaultKind::{Deadline, Exit, Trap};
    const OK: Option<u32> = Some(200);
    const BROKEN: Option<u32> = Some(500);
    let phases = |broken| vec![broken, OK, broken, OK, OK, OK, OK, OK];
    let traps = |broken| vec![OK, broken, OK, OK, OK, broken, OK, OK];
    Some(match case {
        "fault_body_fail_open_flag" => (vec![OK, OK], vec![Trap]),
        "fault_configure_trap" | "fault_configure_trap_open" | "fault_vm_start_trap" => {
            (Vec::new(), Vec::new())
        }
        "fault_exit" => (vec![OK, BROKEN, OK, OK], vec![Exit(3)]),
        "fault_loop" => (vec![OK, BROKEN, OK, OK, OK], vec![Deadline]),
        "fault_membomb" => (vec![OK, BROKEN, OK, OK], vec![FaultKind::OutOfMemory]),
        "fault_membomb_grow" => (vec![OK, OK, OK, OK], Vec::new()),
        "fault_other_streams" | "fault_other_streams_reload" => {
            (vec![BROKEN, BROKEN, OK, OK], vec![Trap])
        }
        "fault_phases_closed" | "fault_phases_default" | "fault_phases_reload" => {
            (phases(BROKEN), vec![Trap; 4])
        }
        "fault_phases_open" => (phases(OK), vec![Trap; 4]),
        "fault_spin" => (vec![BROKEN, OK], vec![Deadline]),
        // The probe's own stack, in its memory, ends before the engine's.
        "fault_stack" => (vec![OK, BROKEN, OK, OK], vec![Trap]),
        "fault_tick_trap" | "fault_tick_trap_reload" => (vec![OK, OK, OK], vec![Trap; 2]),
        "fault_trap_closed" | "fault_trap_default" | "fault_trap_reload" => {
            (traps(BROKEN), vec![Trap; 2])
        }
        "fault_trap_open" => (traps(OK), vec![Trap; 2]),
        "fault_trap_fail_open_flag" => (vec![OK, OK, OK], vec![Trap]),
        "fault_trap_resp_fail_open_flag" => (vec![OK, OK, OK], vec![Trap]),
        _ => return None,
    })
}

/// Lines that are not compared, with the reason.
fn masked(case: &str, line: &str) -> String {
    // Envoy adds `date` and its own headers before it logs.
    if line.starts_with("[log] pairs(2)") {
        return "[log] pairs(2)".to_owned();
    }
    // The same metric has the same number, where Envoy gives a new one each time and grows.
    if line.contains("] define_metric(") {
        return digits(line);
    }
    match case {
        // How many bytes a socket gives at once.
        "probe_body_limit" => digits(line),
        // Each plugin has an instance of its own, hence numbers of its own.
        "probe_two_plugins_one_vm" | "probe_two_plugins_same_root" => digits(line),
        // Addresses, times, sizes and `xds.` are the embedder's to answer; here it has none of them.
        // What the crate answers itself is compared; in which order a map is has no meaning.
        "probe_props" if line.contains("] prop ") && !answered_here(line) => {
            line.split(" => ").next().unwrap_or_default().to_owned()
        }
        // Of foreign functions the crate has one that Envoy has.
        "probe_foreign" if line.contains("foreign ") || line.contains("decl_prop") => {
            let kept = line.contains("clear_route_cache");
            if kept { line.to_owned() } else { line.split(" => ").next().unwrap().to_owned() }
        }
        _ => line.to_owned(),
    }
}

fn answered_here(line: &str) -> bool {
    let name = line.split("] prop ").nth(1).and_then(|rest| rest.split(" => ").next());
    matches!(
        name.unwrap_or_default(),
        "" | "request"
            | "response"
            | "source"
            | "connection"
            | "plugin_name"
            | "plugin_root_id"
            | "plugin_vm_id"
            | "my_prop"
            | "request.path"
            | "request.url_path"
            | "request.host"
            | "request.scheme"
            | "request.method"
            | "request.headers.x-multi"
            | "request.headers.x-none"
            | "request.referer"
            | "request.useragent"
            | "request.id"
            | "request.query"
            | "response.headers.x-origin"
            | "response.trailers"
            | "request.no_such"
            | "no_such_thing"
            | "wasm.foo"
    )
}

fn digits(line: &str) -> String {
    let mut out = String::new();
    for character in line.chars() {
        if !character.is_ascii_digit() {
            out.push(character);
        } else if !out.ends_with('N') {
            out.push('N');
        }
    }
    out
}

/// What is wrong with a case; empty if nothing is.
pub fn complaints(case: &Case, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    if case.expected.started != seen.started {
        wrong.push(format!("started {} not {}", seen.started, case.expected.started));
    }
    if let Some((statuses, kinds)) = faults(&case.name) {
        let found: Vec<_> = seen.clients.iter().flatten().map(|client| client.status).collect();
        let broke: Vec<_> = seen.faults.iter().map(|fault| fault.kind).collect();
        if found != statuses || broke != kinds {
            wrong.push(format!("{found:?} {broke:?}, not {statuses:?} {kinds:?}"));
        }
        return wrong;
    }
    if !seen.faults.is_empty() {
        wrong.push(format!("broke: {:?}", seen.faults));
    }
    if !case.expected.startup_logs.is_empty() {
        startup(case, seen, &mut wrong);
    }
    // A plugin that did not start has seen no request.
    for (at, request) in case.requests.iter().enumerate().filter(|_| seen.started) {
        let observed = seen.observations.get(at).cloned().unwrap_or_default();
        let expected = case.expected.observations.get(at);
        let name = &request.name;
        let better =
            BETTER.iter().find(|better| better.case == case.name && better.request == *name);
        match (better, expected) {
            (Some(better), expected) => is_better(better, expected, &observed, &mut wrong),
            (None, Some(expected)) => observation(case, name, expected, &observed, &mut wrong),
            (None, None) => wrong.push(format!("{name}: nothing is expected")),
        }
    }
    wrong
}

fn is_better(
    better: &Better,
    expected: Option<&Observation>,
    seen: &Observation,
    wrong: &mut Vec<String>,
) {
    let bodies: Vec<_> =
        seen.origin.iter().map(|one| one.body.clone().unwrap_or_default()).collect();
    let client = seen.client.clone().unwrap_or_default();
    let complete = client.status == Some(200) && client.end.as_deref() == Some("complete");
    if bodies != [better.origin] || client.body != better.client || !complete {
        wrong.push(format!("{}: origin {bodies:?} client {client:?}", better.request));
    }
    let logged = seen.logs.iter().filter(|(_, line)| line.starts_with("on_log(")).count();
    if logged != 1 {
        wrong.push(format!("{}: logged {logged} times", better.request));
    }
    // Up to where Envoy goes wrong, everything is the same.
    let Some(expected) = expected else { return };
    let until = |lines: &[Pair]| -> Vec<Pair> {
        let end = |line: &str| line.starts_with("on_response") || line.starts_with("on_log");
        let body = |line: &str| line.starts_with("on_request_body");
        let stops = better.request.starts_with("cont inside");
        lines.iter().take_while(|(_, line)| !(end(line) || stops && body(line))).cloned().collect()
    };
    logs("", better.request, &until(&expected.logs), &until(&seen.logs), wrong);
    let same = expected.origin == seen.origin && expected.client.as_ref() == Some(&client);
    if same {
        wrong.push(format!("{}: no difference any more", better.request));
    }
}

/// How many instances a proxy starts is its own business, and what later ones find in shared data; the
/// set of lines counts, and each of ours must be one of Envoy's.
fn startup(case: &Case, seen: &Seen, wrong: &mut Vec<String>) {
    let set = |lines: &[Pair]| {
        let mut lines: Vec<_> =
            lines.iter().map(|(_, line)| digits(&masked(&case.name, line))).collect();
        lines.sort();
        lines.dedup();
        lines
    };
    if set(&case.expected.startup_logs) != set(&seen.startup_logs) {
        wrong.push(format!("startup: {:?}", seen.startup_logs));
    }
    let expected: Vec<_> = case
        .expected
        .startup_logs
        .iter()
        .map(|(level, line)| (level, masked(&case.name, line)))
        .collect();
    for (level, line) in &seen.startup_logs {
        let line = masked(&case.name, line);
        if !expected.contains(&(level, line.clone())) {
            wrong.push(format!("startup: {line} is not Envoy's"));
        }
    }
}

fn observation(
    case: &Case,
    name: &str,
    expected: &Observation,
    seen: &Observation,
    wrong: &mut Vec<String>,
) {
    if let (Some(expected), Some(seen)) = (&expected.client, &seen.client) {
        client(name, expected, seen, wrong);
    }
    for (what, expected, seen) in [
        ("origin", &expected.origin, &seen.origin),
        ("callouts", &expected.callouts, &seen.callouts),
    ] {
        let expected: Vec<_> = expected.iter().filter(|one| one.complete).map(plain).collect();
        let seen: Vec<_> = seen.iter().map(plain).collect();
        if expected != seen {
            wrong.push(format!("{name}: {what}\n   expected {expected:?}\n   seen     {seen:?}"));
        }
    }
    if expected.tcp_origin.is_some() && !tcp_equal(expected, seen) {
        wrong.push(format!("{name}: tcp {:?} {:?}", expected.tcp_origin, seen.tcp_origin));
    }
    // A plugin of its own instance ends by itself: log, done and delete of two are not interleaved.
    if case.extra_plugins.is_empty() {
        logs(&case.name, name, &expected.logs, &seen.logs, wrong);
    } else {
        let sorted = |lines: &[Pair]| {
            let mut lines: Vec<_> =
                lines.iter().map(|(level, line)| (level.clone(), digits(line))).collect();
            lines.sort();
            lines
        };
        logs(&case.name, name, &sorted(&expected.logs), &sorted(&seen.logs), wrong);
    }
}

fn tcp_equal(expected: &Observation, seen: &Observation) -> bool {
    let data = |of: &Observation| -> Vec<String> {
        let all = of.tcp_origin.clone().unwrap_or_default();
        all.into_iter().filter(|data| data != "<eof>").collect()
    };
    data(expected) == data(seen)
}

fn client(name: &str, expected: &Client, seen: &Client, wrong: &mut Vec<String>) {
    let pick = |of: &Client| {
        let headers = header_set(&of.headers);
        (of.status, of.body.clone(), of.end.clone(), headers, of.trailers.clone(), of.steps.clone())
    };
    if pick(expected) != pick(seen) {
        wrong.push(format!("{name}: client\n   expected {expected:?}\n   seen     {seen:?}"));
    }
}

fn plain(received: &Received) -> Received {
    let body = received.body.as_deref().map(|body| text(&expand(body)));
    Received { headers: header_set(&received.headers), body, ..received.clone() }
}

/// Framing is the proxy's business, not this crate's; `connection` and its like are not in the data.
fn header_set(headers: &[Pair]) -> Vec<Pair> {
    let framing = |name: &str| matches!(name, "content-length" | "transfer-encoding" | ":status");
    let mut headers: Vec<_> = headers
        .iter()
        // Envoy writes a second `:path` as a line of its own, which no header is.
        .filter(|(name, _)| !framing(name) && !name.is_empty())
        .cloned()
        .collect();
    headers.sort();
    headers
}

fn logs(case: &str, name: &str, expected: &[Pair], seen: &[Pair], wrong: &mut Vec<String>) {
    for at in 0..expected.len().max(seen.len()) {
        let line = |of: Option<&Pair>| of.map(|(level, line)| (level.clone(), masked(case, line)));
        let (expected_line, seen_line) = (line(expected.get(at)), line(seen.get(at)));
        if expected_line != seen_line {
            wrong.push(format!(
                "{name}: line {at} of {}/{}\n   expected {expected_line:?}\n   seen     {seen_line:?}",
                expected.len(),
                seen.len(),
            ));
            // One line that differs is told; those after it often follow from it.
            return;
        }
    }
}
