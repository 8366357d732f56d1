//! Every function of `env.`, with arguments that make no sense, in every phase: a guest may get any status,
//! may even stop by its own doing, but must never make the host panic.

use leno_wasm_host::{ClosedBy, FaultKind, HttpCallResponse, PluginSettings};

use crate::{
    script::{Arg, Guest, Int, Long, Script},
    targets::FUNCTIONS,
};

const PHASES: &[&str] = &[
    "_initialize",
    "proxy_on_configure",
    "proxy_on_tick",
    "proxy_on_request_headers",
    "proxy_on_request_body",
    "proxy_on_response_headers",
    "proxy_on_response_body",
    "proxy_on_http_call_response",
    "proxy_on_log",
    "proxy_on_delete",
];

/// Numbers at which something begins or ends.
const EDGES: &[u32] = &[
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    16,
    64,
    1024,
    65_536,
    262_143,
    262_144,
    0x7fff_ffff,
    0x8000_0000,
    u32::MAX - 8,
    u32::MAX,
];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn argument(&mut self, kind: char) -> Arg {
        let edge = EDGES[self.below(EDGES.len())];
        match kind {
            'I' => Long(i64::from(edge) << self.below(32)),
            // Few are small enough to reach the function's own work if all are edges.
            _ if self.below(2) == 0 => Int(self.below(12) as u32),
            _ => Int(edge),
        }
    }
}

fn script(random: &mut Random) -> Script {
    // Memory beyond the allocator's is asked for soon; the allocator then fails as real ones do.
    let mut script = Script::new();
    for _ in 0..60 {
        let (function, parameters) = FUNCTIONS[random.below(FUNCTIONS.len())];
        let arguments: Vec<_> = parameters.chars().map(|kind| random.argument(kind)).collect();
        let phase = PHASES[random.below(PHASES.len())];
        script = script.call_in(phase, "env", function, &arguments);
    }
    script
}

#[test]
fn nothing_makes_the_host_panic() {
    let mut random = Random(11);
    for round in 0..15 {
        let text = script(&mut random).text();
        let settings = PluginSettings {
            configuration: vec![b'c'; 100],
            vm_configuration: vec![b'v'; 100],
            ..PluginSettings::default()
        };
        let Ok(mut guest) = Guest::start(&text, settings) else { continue };
        if let Err(fault) = drive(&mut guest) {
            assert_ne!(fault.kind, FaultKind::HostPanic, "round {round}: {fault}\n{text}");
        }
    }
}

fn drive(guest: &mut Guest) -> Result<(), leno_wasm_host::Fault> {
    for _ in 0..3 {
        let (context, action) = guest.request();
        action?;
        let stream = guest.instance.stream_mut(context).unwrap();
        stream.buffers[0] = b"a body".to_vec();
        stream.buffers[1] = b"another body".to_vec();
        stream.maps[2] = Some(vec![(b":status".to_vec(), b"200".to_vec())]);
        guest.instance.on_request_body(context, 6, false)?;
        guest.instance.on_request_body(context, 6, true)?;
        guest.instance.on_tick()?;
        let calls = std::mem::take(&mut guest.wishes.borrow_mut().calls);
        for call in calls {
            guest.instance.on_http_call_response(call.token, HttpCallResponse::default())?;
        }
        guest.instance.on_response_headers(context, 1, false)?;
        guest.instance.on_response_body(context, 12, true)?;
        guest.instance.on_downstream_close(context, ClosedBy::Unknown)?;
        guest.instance.finish(context).1?;
    }
    guest.instance.shut_down()?;
    guest.instance.delete_root()
}

#[test]
fn every_function_can_be_imported() {
    let mut script = Script::new();
    for (function, parameters) in FUNCTIONS {
        let arguments: Vec<_> =
            parameters.chars().map(|kind| if kind == 'I' { Long(0) } else { Int(0) }).collect();
        script = script.call(function, &arguments);
    }
    assert_eq!(script.log().iter().filter(|line| line.len() == 1).count(), FUNCTIONS.len());
}
