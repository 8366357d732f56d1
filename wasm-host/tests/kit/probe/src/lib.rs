#![allow(dead_code)]
// Raw Proxy-Wasm ABI probe (own code, no SDK). Every callback logs itself; behaviour is driven by request headers
// (or by the plugin configuration for the VM-level callbacks). See wasm.md "probe" for the vocabulary.
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write;

#[allow(dead_code)]
mod host {
    #[link(wasm_import_module = "env")]
    extern "C" {
        pub fn proxy_log(level: u32, p: *const u8, n: usize) -> u32;
        pub fn proxy_get_buffer_bytes(t: u32, start: u32, len: u32, pp: *mut u32, ps: *mut u32) -> u32;
        pub fn proxy_get_buffer_status(t: u32, ps: *mut u32, pf: *mut u32) -> u32;
        pub fn proxy_set_buffer_bytes(t: u32, start: u32, len: u32, p: *const u8, n: usize) -> u32;
        pub fn proxy_get_header_map_size(t: u32, ps: *mut u32) -> u32;
        pub fn proxy_get_header_map_pairs(t: u32, pp: *mut u32, ps: *mut u32) -> u32;
        pub fn proxy_set_header_map_pairs(t: u32, p: *const u8, n: usize) -> u32;
        pub fn proxy_get_header_map_value(t: u32, k: *const u8, kn: usize, pp: *mut u32, ps: *mut u32) -> u32;
        pub fn proxy_add_header_map_value(t: u32, k: *const u8, kn: usize, v: *const u8, vn: usize) -> u32;
        pub fn proxy_replace_header_map_value(t: u32, k: *const u8, kn: usize, v: *const u8, vn: usize) -> u32;
        pub fn proxy_remove_header_map_value(t: u32, k: *const u8, kn: usize) -> u32;
        pub fn proxy_get_property(k: *const u8, kn: usize, pp: *mut u32, ps: *mut u32) -> u32;
        pub fn proxy_set_property(k: *const u8, kn: usize, v: *const u8, vn: usize) -> u32;
        pub fn proxy_send_local_response(code: u32, d: *const u8, dn: usize, b: *const u8, bn: usize, h: *const u8, hn: usize, grpc: i32) -> u32;
        pub fn proxy_http_call(u: *const u8, un: usize, h: *const u8, hn: usize, b: *const u8, bn: usize, t: *const u8, tn: usize, timeout: u32, tok: *mut u32) -> u32;
        pub fn proxy_grpc_call(u: *const u8, un: usize, s: *const u8, sn: usize, m: *const u8, mn: usize, i: *const u8, in_: usize, b: *const u8, bn: usize, timeout: u32, tok: *mut u32) -> u32;
        pub fn proxy_grpc_stream(u: *const u8, un: usize, s: *const u8, sn: usize, m: *const u8, mn: usize, i: *const u8, in_: usize, tok: *mut u32) -> u32;
        pub fn proxy_grpc_send(tok: u32, b: *const u8, bn: usize, eos: u32) -> u32;
        pub fn proxy_grpc_cancel(tok: u32) -> u32;
        pub fn proxy_grpc_close(tok: u32) -> u32;
        pub fn proxy_get_status(code: *mut u32, pp: *mut u32, ps: *mut u32) -> u32;
        pub fn proxy_set_shared_data(k: *const u8, kn: usize, v: *const u8, vn: usize, cas: u32) -> u32;
        pub fn proxy_get_shared_data(k: *const u8, kn: usize, pp: *mut u32, ps: *mut u32, cas: *mut u32) -> u32;
        pub fn proxy_register_shared_queue(k: *const u8, kn: usize, tok: *mut u32) -> u32;
        pub fn proxy_resolve_shared_queue(vm: *const u8, vmn: usize, k: *const u8, kn: usize, tok: *mut u32) -> u32;
        pub fn proxy_enqueue_shared_queue(tok: u32, v: *const u8, vn: usize) -> u32;
        pub fn proxy_dequeue_shared_queue(tok: u32, pp: *mut u32, ps: *mut u32) -> u32;
        pub fn proxy_define_metric(t: u32, k: *const u8, kn: usize, id: *mut u32) -> u32;
        pub fn proxy_increment_metric(id: u32, off: i64) -> u32;
        pub fn proxy_record_metric(id: u32, v: u64) -> u32;
        pub fn proxy_get_metric(id: u32, v: *mut u64) -> u32;
        pub fn proxy_set_tick_period_milliseconds(ms: u32) -> u32;
        pub fn proxy_get_current_time_nanoseconds(p: *mut u64) -> u32;
        pub fn proxy_set_effective_context(id: u32) -> u32;
        pub fn proxy_done() -> u32;
        pub fn proxy_call_foreign_function(k: *const u8, kn: usize, a: *const u8, an: usize, pp: *mut u32, ps: *mut u32) -> u32;
    }
    #[cfg(feature = "abi010")]
    #[link(wasm_import_module = "env")]
    extern "C" {
        pub fn proxy_get_configuration(pp: *mut u32, ps: *mut u32) -> u32;
        pub fn proxy_continue_request() -> u32;
        pub fn proxy_continue_response() -> u32;
        pub fn proxy_clear_route_cache() -> u32;
    }
    #[cfg(not(feature = "abi010"))]
    #[link(wasm_import_module = "env")]
    extern "C" {
        pub fn proxy_continue_stream(t: u32) -> u32;
        pub fn proxy_close_stream(t: u32) -> u32;
    }
    #[cfg(feature = "abi021")]
    #[link(wasm_import_module = "env")]
    extern "C" {
        pub fn proxy_get_log_level(p: *mut u32) -> u32;
    }
    pub mod wasi {
        #[link(wasm_import_module = "wasi_snapshot_preview1")]
        extern "C" {
            pub fn fd_write(fd: u32, iov: *const u32, n: usize, out: *mut u32) -> u32;
            pub fn fd_read(fd: u32, iov: *const u32, n: usize, out: *mut u32) -> u32;
            pub fn fd_seek(fd: u32, off: i64, w: u32, out: *mut u64) -> u32;
            pub fn fd_close(fd: u32) -> u32;
            pub fn fd_fdstat_get(fd: u32, out: *mut u8) -> u32;
            pub fn fd_prestat_get(fd: u32, out: *mut u8) -> u32;
            pub fn clock_time_get(id: u32, prec: u64, out: *mut u64) -> u32;
            pub fn clock_res_get(id: u32, out: *mut u64) -> u32;
            pub fn random_get(p: *mut u8, n: usize) -> u32;
            pub fn environ_sizes_get(a: *mut u32, b: *mut u32) -> u32;
            pub fn environ_get(a: *mut u32, b: *mut u8) -> u32;
            pub fn args_sizes_get(a: *mut u32, b: *mut u32) -> u32;
            pub fn poll_oneoff(i: *const u8, o: *mut u8, n: usize, out: *mut u32) -> u32;
            pub fn sched_yield() -> u32;
            pub fn path_open(fd: u32, df: u32, p: *const u8, n: usize, of: u32, rb: u64, ri: u64, ff: u32, out: *mut u32) -> u32;
            pub fn proc_exit(code: u32);
        }
    }
}
use host::*;

#[cfg(feature = "abi021")]
#[no_mangle]
pub extern "C" fn proxy_abi_version_0_2_1() {}
#[cfg(feature = "abi020")]
#[no_mangle]
pub extern "C" fn proxy_abi_version_0_2_0() {}
#[cfg(feature = "abi010")]
#[no_mangle]
pub extern "C" fn proxy_abi_version_0_1_0() {}

#[no_mangle]
pub extern "C" fn proxy_on_memory_allocate(n: usize) -> *mut u8 {
    let mut v: Vec<u8> = Vec::with_capacity(n.max(1));
    let p = v.as_mut_ptr();
    std::mem::forget(v);
    p
}
fn log(s: &str) { unsafe { proxy_log(2, s.as_ptr(), s.len()); } }
macro_rules! l { ($($a:tt)*) => { log(&format!($($a)*)) } }
fn take(p: u32, n: u32) -> Vec<u8> { if p == 0 || n == 0 { return vec![] } unsafe { std::slice::from_raw_parts(p as *const u8, n as usize).to_vec() } }
fn show(v: &[u8]) -> String {
    if v.len() <= 200 && v.iter().all(|c| (32..127).contains(c)) { format!("{:?}", std::str::from_utf8(v).unwrap()) }
    else { let mut s = String::new(); for b in v.iter().take(96) { let _ = write!(s, "{:02x}", b); } format!("hex:{}{}({} bytes)", s, if v.len() > 96 { ".." } else { "" }, v.len()) }
}
fn get(t: u32, k: &str) -> (u32, Vec<u8>) { let (mut p, mut n) = (0, 0); let r = unsafe { proxy_get_header_map_value(t, k.as_ptr(), k.len(), &mut p, &mut n) }; (r, take(p, n)) }
fn hdr(t: u32, k: &str) -> Option<String> { let (r, v) = get(t, k); if r == 0 && !v.is_empty() { Some(String::from_utf8_lossy(&v).into()) } else { None } }
fn pairs(t: u32) -> (u32, Vec<u8>) { let (mut p, mut n) = (0xdead, 0xbeef); let r = unsafe { proxy_get_header_map_pairs(t, &mut p, &mut n) }; if r != 0 || p == 0xdead { return (r, vec![]) } (r, take(p, n)) }
fn buf(t: u32, s: u32, len: u32) -> (u32, u32, Vec<u8>) { let (mut p, mut n) = (0xdead, 0xbeef); let r = unsafe { proxy_get_buffer_bytes(t, s, len, &mut p, &mut n) }; if p == 0xdead { return (r, 0xbeef, vec![]) } (r, n, take(p, n)) }
fn setbuf(t: u32, s: u32, len: u32, v: &[u8]) -> u32 { unsafe { proxy_set_buffer_bytes(t, s, len, v.as_ptr(), v.len()) } }
fn add(t: u32, k: &str, v: &str) -> u32 { unsafe { proxy_add_header_map_value(t, k.as_ptr(), k.len(), v.as_ptr(), v.len()) } }
fn rep(t: u32, k: &str, v: &str) -> u32 { unsafe { proxy_replace_header_map_value(t, k.as_ptr(), k.len(), v.as_ptr(), v.len()) } }
fn rem(t: u32, k: &str) -> u32 { unsafe { proxy_remove_header_map_value(t, k.as_ptr(), k.len()) } }
fn prop(path: &str) -> (u32, Vec<u8>) { let k = path.replace('.', "\0").replace('~', "."); let (mut p, mut n) = (0, 0); let r = unsafe { proxy_get_property(k.as_ptr(), k.len(), &mut p, &mut n) }; (r, take(p, n)) }
fn ser(h: &[(&str, &str)]) -> Vec<u8> {
    let mut o = (h.len() as u32).to_le_bytes().to_vec();
    for (k, v) in h { o.extend((k.len() as u32).to_le_bytes()); o.extend((v.len() as u32).to_le_bytes()); }
    for (k, v) in h { o.extend(k.as_bytes()); o.push(0); o.extend(v.as_bytes()); o.push(0); }
    o
}
fn local(code: u32, details: &str, body: &str, h: &[(&str, &str)], grpc: i32) -> u32 {
    let s = ser(h);
    let (hp, hn) = if h.is_empty() { (std::ptr::null(), 0) } else { (s.as_ptr(), s.len()) };
    unsafe { proxy_send_local_response(code, details.as_ptr(), details.len(), body.as_ptr(), body.len(), hp, hn, grpc) }
}
fn http_call(up: &str, h: &[(&str, &str)], body: &str, t: &[(&str, &str)], timeout: u32) -> (u32, u32) {
    let s = ser(h); let ts = ser(t); let mut tok = 0xdead;
    let (tp, tn) = if t.is_empty() { (std::ptr::null(), 0) } else { (ts.as_ptr(), ts.len()) };
    let r = unsafe { proxy_http_call(up.as_ptr(), up.len(), s.as_ptr(), s.len(), body.as_ptr(), body.len(), tp, tn, timeout, &mut tok) };
    (r, tok)
}
fn grpc_call(up: &str, s: &str, m: &str, i: &[(&str, &str)], b: &[u8], timeout: u32) -> (u32, u32) {
    let sr = ser(i); let mut tok = 0xdead; let (ip, ino) = if i.is_empty() { (std::ptr::null(), 0) } else { (sr.as_ptr(), sr.len()) };
    let r = unsafe { proxy_grpc_call(up.as_ptr(), up.len(), s.as_ptr(), s.len(), m.as_ptr(), m.len(), ip, ino, b.as_ptr(), b.len(), timeout, &mut tok) };
    (r, tok)
}
fn stream(up: &str, s: &str, m: &str, i: &[(&str, &str)]) -> (u32, u32) {
    let sr = ser(i); let mut tok = 0xdead; let (ip, ino) = if i.is_empty() { (std::ptr::null(), 0) } else { (sr.as_ptr(), sr.len()) };
    let r = unsafe { proxy_grpc_stream(up.as_ptr(), up.len(), s.as_ptr(), s.len(), m.as_ptr(), m.len(), ip, ino, &mut tok) };
    (r, tok)
}
fn last_stream() -> u32 { S.with(|s| s.borrow().stream) }
fn foreign_call(name: &str, arguments: &[u8]) -> u32 { let (mut p, mut n) = (0, 0); unsafe { proxy_call_foreign_function(name.as_ptr(), name.len(), arguments.as_ptr(), arguments.len(), &mut p, &mut n) } }
// What the headers of the request want done when its gRPC call is heard of: `x-<phase>-message`, `x-<phase>-end`.
fn heard(t: u32, event: &str) { if let Some((ctx, phase)) = S.with(|s| s.borrow().calls.get(&t).cloned()) { if event == "end" { S.with(|s| s.borrow_mut().calls.remove(&t)); } unsafe { proxy_set_effective_context(ctx); } act(ctx, &format!("{}-{}", phase, event), 0); } }
#[cfg(not(feature = "abi010"))]
fn cont(t: u32) -> u32 { unsafe { proxy_continue_stream(t) } }
#[cfg(feature = "abi010")]
fn cont(t: u32) -> u32 { unsafe { if t == 0 { proxy_continue_request() } else { proxy_continue_response() } } }

#[derive(Default, Clone)]
struct Ctx { h: HashMap<String, String>, eff: bool }
#[derive(Default)]
struct State { ctx: HashMap<u32, Ctx>, parked: Vec<(u32, u32)>, calls: HashMap<u32, (u32, String)>, stream: u32, root: u32, cfg: String, leaked: Vec<Vec<u8>> }
thread_local! { static S: RefCell<State> = RefCell::new(State::default()); }
fn opt(c: u32, k: &str) -> Option<String> { S.with(|s| s.borrow().ctx.get(&c).and_then(|x| x.h.get(k).cloned())) }

fn fault(kind: &str) -> u32 {
    l!("fault {}", kind);
    match kind {
        "unreachable" => core::arch::wasm32::unreachable(),
        "panic" => panic!("probe panic"),
        "oob" => unsafe { *(0x7fff_0000 as *mut u32) = 1; 0 },
        "stack" => recurse(std::hint::black_box(1)),
        "loop" => { let mut x: u64 = 0; loop { x = std::hint::black_box(x.wrapping_add(1)); } }
        "membomb" => { loop { let v = vec![1u8; 1 << 20]; S.with(|s| s.borrow_mut().leaked.push(std::hint::black_box(v))); } }
        "membomb-grow" => { let mut n = 0u32; loop { if core::arch::wasm32::memory_grow(0, 16) == usize::MAX { l!("memory.grow failed after {} MiB, total pages {}", n, core::arch::wasm32::memory_size(0)); return 0; } n += 1; } }
        "exit" => { unsafe { host::wasi::proc_exit(3) }; l!("after proc_exit"); 0 }
        "spin100ms" | "spin1s" | "spin3s" => { let ns: u64 = match kind { "spin100ms" => 100_000_000, "spin1s" => 1_000_000_000, _ => 3_000_000_000 }; let mut a = 0u64; let mut b = 0u64; unsafe { host::wasi::clock_time_get(1, 0, &mut a); loop { host::wasi::clock_time_get(1, 0, &mut b); if b - a > ns { break } } } l!("spun"); 0 }
        _ => 0,
    }
}
#[inline(never)]
fn recurse(n: u32) -> u32 { let mut a = [n; 64]; std::hint::black_box(&mut a); if n == 0 { 0 } else { recurse(a[3] + 1) + a[5] } }

fn act(c: u32, phase: &str, default: u32) -> u32 {
    if opt(c, "x-fault-phase").as_deref() == Some(phase) { fault(&opt(c, "x-fault").unwrap_or_default()); }
    // x-<phase>: comma separated list of operations; a number is the return value
    let mut ret = default;
    if let Some(v) = opt(c, &format!("x-{}", phase)) {
        for op in v.split(',') {
            let op = op.trim();
            if let Ok(n) = op.parse::<u32>() { ret = n; continue }
            let (o, a) = op.split_once('=').unwrap_or((op, ""));
            let r = match o {
                "local" => local(a.parse().unwrap_or(418), "probe details", "local body\n", &[("x-local", phase), ("content-type", "text/probe")], -1),
                "local-nobody" => local(a.parse().unwrap_or(418), "", "", &[], -1),
                "local-grpc" => local(200, "grpc details", "grpc message", &[("x-local", phase)], a.parse().unwrap_or(7)),
                "local-status" => local(403, "", "x", &[(":status", "299"), ("content-length", "999"), ("X-Upper", "Y"), ("x-dup", "1"), ("x-dup", "2")], -1),
                "local-badpairs" => { let junk = [9u8, 0, 0, 0, 1, 2, 3]; unsafe { proxy_send_local_response(418, "".as_ptr(), 0, "b".as_ptr(), 1, junk.as_ptr(), junk.len(), -1) } }
                "cont" => cont(a.parse().unwrap_or(0)),
                #[cfg(not(feature = "abi010"))]
                "close" => unsafe { proxy_close_stream(a.parse().unwrap_or(0)) },
                "park" => { S.with(|s| s.borrow_mut().parked.push((c, a.parse().unwrap_or(0)))); 0 }
                "tick" => unsafe { proxy_set_tick_period_milliseconds(a.parse().unwrap_or(100)) },
                "add-req" => { let (k, v) = a.split_once(':').unwrap_or((a, "1")); add(0, k, v) }
                "rep-req" => { let (k, v) = a.split_once('|').unwrap_or((a, "1")); rep(0, k, v) }
                "rem-req" => rem(0, a),
                "add-resp" => { let (k, v) = a.split_once(':').unwrap_or((a, "1")); add(2, k, v) }
                "rep-resp" => { let (k, v) = a.split_once('|').unwrap_or((a, "1")); rep(2, k, v) }
                "rem-resp" => rem(2, a),
                "add-req-trailer" => add(1, "x-probe-trailer", a),
                "add-resp-trailer" => add(3, "x-probe-trailer", a),
                "get-req" => { let (r, v) = get(0, a); l!("get-req {} => {} {}", a, r, show(&v)); r }
                "get-resp" => { let (r, v) = get(2, a); l!("get-resp {} => {} {}", a, r, show(&v)); r }
                "body" => { let t: u32 = a.parse().unwrap_or(0); let (r, n, v) = buf(t, 0, 0xffffffff); l!("body t={} => {} size={} {}", t, r, n, show(&v)); let (r, n, v) = buf(t, 0, 1000000); l!("body1M t={} => {} size={} {}", t, r, n, show(&v)); r }
                "bufstat" => { let mut n = 0xbeef; let mut f = 0xdead; let r = unsafe { proxy_get_buffer_status(a.parse().unwrap_or(0), &mut n, &mut f) }; l!("bufstat {} => {} size={} flags={}", a, r, n, f); r }
                "setbody" => { let mut it = a.split(':'); let t: u32 = it.next().unwrap().parse().unwrap(); let s: u32 = it.next().unwrap().parse().unwrap(); let n: u32 = it.next().unwrap().parse().unwrap(); setbuf(t, s, n, it.next().unwrap_or("").as_bytes()) }
                "call" => { let (r, tok) = http_call("callout", &[(":method", "GET"), (":path", a), (":authority", "callout.test"), ("x-from", phase)], "", &[], 1000); if r == 0 { S.with(|s| s.borrow_mut().calls.insert(tok, (c, phase.into()))); } r }
                "callpost" => { let (r, tok) = http_call("callout", &[(":method", "POST"), (":path", a), (":authority", "callout.test")], "call body", &[("x-call-trailer", "t")], 300); if r == 0 { S.with(|s| s.borrow_mut().calls.insert(tok, (c, phase.into()))); } r }
                "grpc" => { let (r, tok) = grpc_call("grpc", "probe.Service", a, &[("x-from", phase)], b"hello", 1000); if r == 0 { S.with(|s| s.borrow_mut().calls.insert(tok, (c, phase.into()))); } r }
                "stream" => { let tok = stream("grpc", "probe.Service", a, &[("x-from", phase)]); S.with(|s| { let mut s = s.borrow_mut(); s.calls.insert(tok.1, (c, phase.into())); s.stream = tok.1; }); tok.0 }
                "send" => unsafe { proxy_grpc_send(last_stream(), a.as_ptr(), a.len(), 0) },
                "send-last" => unsafe { proxy_grpc_send(last_stream(), a.as_ptr(), a.len(), 1) },
                "close-stream" => unsafe { proxy_grpc_close(last_stream()) },
                "cancel-stream" => unsafe { proxy_grpc_cancel(last_stream()) },
                "leak-streams" => { let mut n = 0; while stream("grpc", "probe.Service", a, &[]).0 == 0 { n += 1; } n }
                "enqueue" => { let (q, v) = a.split_once(':').unwrap_or((a, "")); let (vm, q) = q.split_once('/').unwrap_or(("", q)); let mut t = 0; let r = unsafe { proxy_resolve_shared_queue(vm.as_ptr(), vm.len(), q.as_ptr(), q.len(), &mut t) }; if r != 0 { r } else { unsafe { proxy_enqueue_shared_queue(t, v.as_ptr(), v.len()) } } }
                "set-shared" => { let (k, v) = a.split_once(':').unwrap_or((a, "")); unsafe { proxy_set_shared_data(k.as_ptr(), k.len(), v.as_ptr(), v.len(), 0) } }
                "get-shared" => { let (mut p, mut n, mut cas) = (0, 0, 0); let r = unsafe { proxy_get_shared_data(a.as_ptr(), a.len(), &mut p, &mut n, &mut cas) }; add(0, "x-shared", &String::from_utf8_lossy(&take(p, n))); r }
                "delete-shared" => foreign_call("leno_shared_data_delete", a.as_bytes()),
                "expire-shared" => { let (k, ms) = a.split_once(':').unwrap_or((a, "0")); foreign_call("leno_shared_data_expire", &[&ms.parse::<u64>().unwrap_or(0).to_le_bytes()[..], k.as_bytes()].concat()) }
                "setprop" => { let (k, v) = a.split_once(':').unwrap_or((a, "1")); unsafe { proxy_set_property(k.as_ptr(), k.len(), v.as_ptr(), v.len()) } }
                "getprop" => { let (r, v) = prop(a); l!("getprop {} => {} {}", a, r, show(&v)); r }
                "pairs" => { let t: u32 = a.parse().unwrap_or(0); let (r, v) = pairs(t); l!("pairs {} => {} {}", t, r, show(&v)); r }
                "eff" => unsafe { proxy_set_effective_context(a.parse().unwrap_or(0)) },
                "done" => unsafe { proxy_done() },
                "sweep" => { sweep(phase); 0 }
                "props" => { props(phase); 0 }
                "foreign" => { foreign(); 0 }
                "wasi" => { wasi(); 0 }
                "badmem" => { badmem(); 0 }
                _ => { l!("unknown op {}", op); 99 }
            };
            l!("{} op {} => {}", phase, op, r);
        }
    }
    ret
}

fn sweep(phase: &str) {
    for t in 0..10u32 { let (r, v) = pairs(t); l!("[{}] pairs({}) => {} len={} {}", phase, t, r, v.len(), if v.len() < 40 { show(&v) } else { String::new() });
        let mut n = 0xbeef; let r = unsafe { proxy_get_header_map_size(t, &mut n) }; l!("[{}] map_size({}) => {} {}", phase, t, r, if r == 0 { n.to_string() } else { "-".into() });
        let (r, v) = get(t, "x-none"); l!("[{}] get({},x-none) => {} {}", phase, t, r, show(&v)); }
    for t in 0..11u32 { let (r, n, v) = buf(t, 0, 100); l!("[{}] buffer({}) => {} size={} {}", phase, t, r, n, show(&v));
        let mut n = 0xbeef; let mut f = 0xdead; let r = unsafe { proxy_get_buffer_status(t, &mut n, &mut f) }; l!("[{}] buffer_status({}) => {} size={} flags={}", phase, t, r, n, f);
        if t > 1 { let r = setbuf(t, 0, 0, b"x"); l!("[{}] set_buffer({}) => {}", phase, t, r); } }
    let (r, v) = get(0, "X-Multi"); l!("[{}] get(0,X-Multi) => {} {}", phase, r, show(&v));
    let (r, v) = get(0, "host"); l!("[{}] get(0,host) => {} {}", phase, r, show(&v));
    let (r, v) = get(0, ":authority"); l!("[{}] get(0,:authority) => {} {}", phase, r, show(&v));
    let (r, v) = get(0, ":scheme"); l!("[{}] get(0,:scheme) => {} {}", phase, r, show(&v));
    let (r, v) = get(0, ""); l!("[{}] get(0,<empty>) => {} {}", phase, r, show(&v));
    l!("[{}] add(0,X-UP:v) => {}", phase, add(0, "X-UP", "v")); l!("[{}] add(2,x:y) => {}", phase, add(2, "x-too-early", "y")); l!("[{}] add(9,x:y) => {}", phase, add(9, "x", "y"));
    l!("[{}] replace(0,x-new:v) => {}", phase, rep(0, "x-new", "v")); l!("[{}] remove(0,x-absent) => {}", phase, rem(0, "x-absent")); l!("[{}] remove(2,x) => {}", phase, rem(2, "x"));
    l!("[{}] add(0,bad name) => {}", phase, add(0, "bad name", "v")); l!("[{}] add(0,x-nl: a\\r\\nb) => {}", phase, add(0, "x-nl", "a\tb"));
    let mut id = 0xdead; for t in 0..5u32 { let k = format!("probe_metric_{}", t); let r = unsafe { proxy_define_metric(t, k.as_ptr(), k.len(), &mut id) }; l!("[{}] define_metric({}) => {} id={}", phase, t, r, if r == 0 { id } else { 0 });
        if r == 0 { let mut v = 0u64; unsafe { l!("[{}] inc +3 => {}", phase, proxy_increment_metric(id, 3)); l!("[{}] inc -1 => {}", phase, proxy_increment_metric(id, -1)); l!("[{}] inc 0 => {}", phase, proxy_increment_metric(id, 0)); l!("[{}] record 10 => {}", phase, proxy_record_metric(id, 10)); let r = proxy_get_metric(id, &mut v); l!("[{}] get_metric => {} {}", phase, r, v); } } }
    unsafe { let mut v = 0u64; l!("[{}] inc unknown => {}", phase, proxy_increment_metric(0xfffc, 1)); l!("[{}] record unknown => {}", phase, proxy_record_metric(0xfffc, 1)); l!("[{}] get unknown => {}", phase, proxy_get_metric(0xfffc, &mut v));
      let k = "probe_key"; let (mut p, mut n, mut cas) = (0, 0, 0);
      let r = proxy_get_shared_data(k.as_ptr(), k.len(), &mut p, &mut n, &mut cas); l!("[{}] shared get before => {} cas={}", phase, r, if r==0 {cas} else {0});
      l!("[{}] shared set cas=0 => {}", phase, proxy_set_shared_data(k.as_ptr(), k.len(), "v1".as_ptr(), 2, 0));
      let r = proxy_get_shared_data(k.as_ptr(), k.len(), &mut p, &mut n, &mut cas); l!("[{}] shared get => {} {} cas!=0 {}", phase, r, show(&take(p, n)), cas != 0);
      l!("[{}] shared set bad cas => {}", phase, proxy_set_shared_data(k.as_ptr(), k.len(), "v2".as_ptr(), 2, cas + 77)); l!("[{}] shared set good cas => {}", phase, proxy_set_shared_data(k.as_ptr(), k.len(), "v3".as_ptr(), 2, cas));
      l!("[{}] shared set old cas => {}", phase, proxy_set_shared_data(k.as_ptr(), k.len(), "v4".as_ptr(), 2, cas)); let k2 = "probe_new"; l!("[{}] shared set new key with cas => {}", phase, proxy_set_shared_data(k2.as_ptr(), k2.len(), "v".as_ptr(), 1, 5));
      l!("[{}] shared set empty value => {}", phase, proxy_set_shared_data(k.as_ptr(), k.len(), std::ptr::null(), 0, 0)); let r = proxy_get_shared_data(k.as_ptr(), k.len(), &mut p, &mut n, &mut cas); l!("[{}] shared get empty => {} size={}", phase, r, n);
      let q = "probe_queue"; let mut tok = 0xdead; l!("[{}] resolve missing => {}", phase, proxy_resolve_shared_queue("".as_ptr(), 0, "nope".as_ptr(), 4, &mut tok)); let r = proxy_register_shared_queue(q.as_ptr(), q.len(), &mut tok); l!("[{}] register => {} token={}", phase, r, tok);
      let mut t2 = 0; let r = proxy_resolve_shared_queue("".as_ptr(), 0, q.as_ptr(), q.len(), &mut t2); l!("[{}] resolve own => {} same={}", phase, r, t2 == tok); l!("[{}] dequeue empty => {}", phase, proxy_dequeue_shared_queue(tok, &mut p, &mut n)); l!("[{}] dequeue unknown => {}", phase, proxy_dequeue_shared_queue(0x7777, &mut p, &mut n));
      l!("[{}] enqueue unknown => {}", phase, proxy_enqueue_shared_queue(0x7777, "x".as_ptr(), 1)); l!("[{}] enqueue => {}", phase, proxy_enqueue_shared_queue(tok, "item".as_ptr(), 4)); let r = proxy_dequeue_shared_queue(tok, &mut p, &mut n); l!("[{}] dequeue => {} {}", phase, r, show(&take(p, n)));
      let ok = [(":method", "GET"), (":path", "/x"), (":authority", "a")];
      l!("[{}] http_call unknown cluster => {:?}", phase, http_call("nope", &ok, "", &[], 100)); l!("[{}] http_call no :path => {:?}", phase, http_call("callout", &[(":method", "GET"), (":authority", "a")], "", &[], 100)); l!("[{}] http_call no :authority => {:?}", phase, http_call("callout", &[(":method", "GET"), (":path", "/x")], "", &[], 100)); l!("[{}] http_call no headers => {:?}", phase, http_call("callout", &[], "", &[], 100)); l!("[{}] http_call timeout=-1 => {:?}", phase, http_call("callout", &ok, "", &[], 0xffffffff));
      l!("[{}] grpc_call unknown cluster => {:?}", phase, grpc_call("nope", "s", "m", &[], b"x", 100));
      l!("[{}] grpc_send bad token => {}", phase, proxy_grpc_send(3, "x".as_ptr(), 1, 0)); l!("[{}] grpc_send call token => {}", phase, proxy_grpc_send(4, "x".as_ptr(), 1, 0)); l!("[{}] grpc_cancel 0,1,2,3 => {} {} {} {}", phase, proxy_grpc_cancel(0), proxy_grpc_cancel(1), proxy_grpc_cancel(2), proxy_grpc_cancel(3)); l!("[{}] grpc_close 0,1,2,3 => {} {} {} {}", phase, proxy_grpc_close(0), proxy_grpc_close(1), proxy_grpc_close(2), proxy_grpc_close(3));
      let mut code = 0xdead; let r = proxy_get_status(&mut code, &mut p, &mut n); l!("[{}] get_status => {} code={} msg={}", phase, r, code, show(&take(p, n)));
      l!("[{}] effective(9999) => {}", phase, proxy_set_effective_context(9999)); l!("[{}] done() => {}", phase, proxy_done());
      #[cfg(not(feature = "abi010"))]
      { l!("[{}] continue(2..5) => {} {} {} {}", phase, proxy_continue_stream(2), proxy_continue_stream(3), proxy_continue_stream(4), proxy_continue_stream(9)); l!("[{}] close(4),(9) => {} {}", phase, proxy_close_stream(4), proxy_close_stream(9)); }
      for lv in [0u32, 1, 5, 6, 7, 100] { let m = "lvl"; l!("[{}] log level {} => {}", phase, lv, if lv == 6 { 998 } else { proxy_log(lv, m.as_ptr(), m.len()) }); }
      #[cfg(feature = "abi021")]
      { let mut lv = 99; let r = proxy_get_log_level(&mut lv); l!("[{}] get_log_level => {} {}", phase, r, lv); }
      let mut t = 0u64; let r = proxy_get_current_time_nanoseconds(&mut t); l!("[{}] time => {} plausible={}", phase, r, t > 1_700_000_000_000_000_000);
      let k = "no_such"; l!("[{}] foreign unknown => {}", phase, proxy_call_foreign_function(k.as_ptr(), k.len(), std::ptr::null(), 0, &mut p, &mut n));
      let junk = [1u8, 0, 0, 0, 9, 9, 9]; l!("[{}] set_pairs junk(5) => {}", phase, proxy_set_header_map_pairs(5, junk.as_ptr(), junk.len()));
    }
}
fn props(phase: &str) {
    for p in ["request.path", "request.url_path", "request.host", "request.scheme", "request.method", "request.headers", "request.headers.x-multi", "request.headers.x-none", "request.referer", "request.useragent", "request.time", "request.id", "request.protocol", "request.query", "request.duration", "request.size", "request.total_size",
        "response.code", "response.code_details", "response.flags", "response.grpc_status", "response.headers", "response.headers.x-origin", "response.trailers", "response.size", "response.total_size", "response.backend_latency",
        "source.address", "source.port", "destination.address", "destination.port", "connection.id", "connection.mtls", "connection.requested_server_name", "connection.tls_version", "connection.subject_local_certificate", "connection.subject_peer_certificate", "connection.dns_san_local_certificate", "connection.dns_san_peer_certificate", "connection.uri_san_local_certificate", "connection.uri_san_peer_certificate", "connection.sha256_peer_certificate_digest", "connection.transport_failure_reason", "connection.termination_details", "connection_id",
        "upstream.address", "upstream.port", "upstream.local_address", "upstream.tls_version", "upstream.transport_failure_reason", "upstream.request_attempt_count", "upstream.cx_pool_ready_duration",
        "metadata", "filter_state", "upstream_filter_state", "plugin_name", "plugin_root_id", "plugin_vm_id", "node.id", "node.cluster", "node.metadata", "node.locality.zone", "cluster_name", "cluster_metadata", "route_name", "route_metadata", "listener_direction", "listener_metadata", "upstream_host_metadata",
        "xds.cluster_name", "xds.cluster_metadata", "xds.route_name", "xds.route_metadata", "xds.listener_metadata", "xds.listener_direction", "xds.upstream_host_metadata", "xds.filter_chain_name", "xds.virtual_host_name", "xds.node.id", "xds.upstream_host_locality_metadata", "no_such_thing", "request.no_such", "request", "response", "source", "connection", "", "wasm.foo", "my_prop"] {
        let (r, v) = prop(p); l!("[{}] prop {} => {} {}", phase, p, r, show(&v));
    }
}
fn foreign() {
    let call = |n: &str, a: &[u8]| { let (mut p, mut s) = (0, 0); let r = unsafe { proxy_call_foreign_function(n.as_ptr(), n.len(), a.as_ptr(), a.len(), &mut p, &mut s) }; (r, take(p, s)) };
    let (r, c) = call("compress", b"hello world!"); l!("foreign compress => {} {}", r, show(&c)); let (r, u) = call("uncompress", &c); l!("foreign uncompress => {} {}", r, show(&u)); let (r, u) = call("uncompress", b"zz"); l!("foreign uncompress junk => {} {}", r, show(&u));
    let (r, id) = call("expr_create", b"request.path + '!' + request.method"); l!("foreign expr_create => {} {}", r, show(&id)); let (r, v) = call("expr_evaluate", &id); l!("foreign expr_evaluate => {} {}", r, show(&v)); let (r, v) = call("expr_delete", &id); l!("foreign expr_delete => {} {}", r, show(&v)); let (r, v) = call("expr_create", b"((("); l!("foreign expr_create junk => {} {}", r, show(&v));
    for n in ["clear_route_cache", "get_node_subset", "set_envoy_filter_state", "declare_property", "verify_signature", "sign", "set_fake", "clear_route", "getRequestId", "wasm_set_upstream_override_host", "set_upstream_override_host", "inject_encoded_data_to_filter_chain", "inject_encoded_data_to_filter_chain_on_header", "route_cluster_not_found", "set_global_max_requests_per_io_cycle"] { let (r, v) = call(n, b""); l!("foreign {} => {} {}", n, r, show(&v)); }
    // SetEnvoyFilterStateArguments{path:"probe.state", value:"pv", span:0}
    let a = b"\x0a\x0bprobe.state\x12\x02pv"; let (r, v) = call("set_envoy_filter_state", a); l!("foreign set_envoy_filter_state(unknown factory) => {} {}", r, show(&v));
    // DeclarePropertyArguments{name:"decl_prop", readonly:true, type:String(1)}
    let a = b"\x0a\x09decl_prop\x10\x01\x18\x01"; let (r, v) = call("declare_property", a); l!("foreign declare_property => {} {}", r, show(&v)); let (r, v) = call("declare_property", a); l!("foreign declare_property again => {} {}", r, show(&v));
    let k = "decl_prop"; unsafe { l!("set decl_prop 1 => {}", proxy_set_property(k.as_ptr(), k.len(), "a".as_ptr(), 1)); l!("set decl_prop 2 (readonly) => {}", proxy_set_property(k.as_ptr(), k.len(), "b".as_ptr(), 1)); } let (r, v) = prop(k); l!("get decl_prop => {} {}", r, show(&v));
}
fn wasi() { unsafe { use host::wasi::*;
    let m = "fd_write line\n"; let iov = [m.as_ptr() as u32, m.len() as u32]; let mut n = 0u32; for fd in 0..4 { n = 77; let r = fd_write(fd, iov.as_ptr(), 1, &mut n); l!("wasi fd_write({}) => {} n={}", fd, r, n); }
    let m2 = "part2"; let iov2 = [m.as_ptr() as u32, 8, m2.as_ptr() as u32, 5]; let r = fd_write(1, iov2.as_ptr(), 2, &mut n); l!("wasi fd_write(2 iov, no newline) => {} n={}", r, n); let r = fd_write(1, iov.as_ptr(), 0, &mut n); l!("wasi fd_write(0 iov) => {} n={}", r, n);
    let mut t = 0u64; for id in 0..4 { t = 0; let r = clock_time_get(id, 0, &mut t); l!("wasi clock_time_get({}) => {} nonzero={}", id, r, t != 0); } for id in 0..3 { t = 0; let r = clock_res_get(id, &mut t); l!("wasi clock_res_get({}) => {} {}", id, r, t); }
    let mut b = vec![0u8; 70000]; for s in [0usize, 16, 65536, 65537] { b.iter_mut().for_each(|x| *x = 0); let r = random_get(b.as_mut_ptr(), s); l!("wasi random_get({}) => {} nonzero={}", s, r, b[..s.min(64)].iter().any(|x| *x != 0)); }
    let (mut a, mut c) = (0, 0); let r = environ_sizes_get(&mut a, &mut c); l!("wasi environ_sizes_get => {} {} {}", r, a, c); let mut pp = vec![0u32; a as usize + 1]; let mut bb = vec![0u8; c as usize + 1]; let r = environ_get(pp.as_mut_ptr(), bb.as_mut_ptr()); l!("wasi environ_get => {} {}", r, String::from_utf8_lossy(&bb[..c as usize]).replace('\0', ";"));
    let r = args_sizes_get(&mut a, &mut c); l!("wasi args_sizes_get => {} {} {}", r, a, c); let mut o = [0u8; 64]; for fd in [0u32, 1, 2, 3] { l!("wasi fd_fdstat_get({}) => {}", fd, fd_fdstat_get(fd, o.as_mut_ptr())); } l!("wasi fd_prestat_get(3) => {}", fd_prestat_get(3, o.as_mut_ptr())); l!("wasi fd_read(0) => {}", fd_read(0, iov.as_ptr(), 1, &mut n)); l!("wasi fd_seek(1) => {}", fd_seek(1, 0, 0, &mut t)); l!("wasi fd_close(1) => {}", fd_close(1)); n = 9; l!("wasi poll_oneoff => {} n={}", poll_oneoff(o.as_ptr(), o.as_mut_ptr(), 1, &mut n), n); l!("wasi sched_yield => {}", sched_yield()); l!("wasi path_open => {}", path_open(3, 0, "x".as_ptr(), 1, 0, 0, 0, 0, &mut n));
} }
fn badmem() { unsafe {
    let big = 0xffff_ff00u32; let (mut p, mut n) = (0u32, 0u32);
    l!("badmem log ptr => {}", proxy_log(2, big as *const u8, 16)); l!("badmem log len => {}", proxy_log(2, 16 as *const u8, 0xffff_fff0)); l!("badmem get key => {}", proxy_get_header_map_value(0, big as *const u8, 4, &mut p, &mut n)); l!("badmem get out ptr => {}", proxy_get_header_map_value(0, ":path".as_ptr(), 5, big as *mut u32, &mut n)); l!("badmem get out size ptr => {}", proxy_get_header_map_value(0, ":path".as_ptr(), 5, &mut p, big as *mut u32));
    l!("badmem pairs out => {}", proxy_get_header_map_pairs(0, big as *mut u32, big as *mut u32)); l!("badmem set_pairs => {}", proxy_set_header_map_pairs(0, big as *const u8, 10)); l!("badmem prop => {}", proxy_get_property(big as *const u8, 4, &mut p, &mut n)); l!("badmem buffer overflow start+len => {}", proxy_get_buffer_bytes(7, 0xffff_fff0, 0x20, &mut p, &mut n)); l!("badmem http_call => {}", proxy_http_call(big as *const u8, 3, big as *const u8, 3, big as *const u8, 3, big as *const u8, 3, 1, &mut n)); l!("badmem token => {}", { let s = ser(&[(":method","GET"),(":path","/"),(":authority","a")]); proxy_http_call("callout".as_ptr(), 7, s.as_ptr(), s.len(), std::ptr::null(), 0, std::ptr::null(), 0, 100, big as *mut u32) }); l!("badmem local => {}", proxy_send_local_response(200, big as *const u8, 9, std::ptr::null(), 0, std::ptr::null(), 0, -1)); l!("badmem null zero-len log => {}", proxy_log(2, std::ptr::null(), 0)); l!("badmem shared => {}", proxy_set_shared_data(big as *const u8, 4, std::ptr::null(), 0, 0)); l!("badmem metric => {}", proxy_define_metric(0, big as *const u8, 4, &mut n));
} }

fn config(t: u32, n: u32) -> String { #[cfg(feature = "abi010")] { let _ = t; let (mut p, mut s) = (0, 0); let r = unsafe { proxy_get_configuration(&mut p, &mut s) }; l!("get_configuration => {} size={}", r, s); let _ = n; return String::from_utf8_lossy(&take(p, s)).into(); } #[cfg(not(feature = "abi010"))] { let (r, s, v) = buf(t, 0, n); l!("get_buffer({}) => {} size={}", t, r, s); String::from_utf8_lossy(&v).into() } }

#[no_mangle] pub extern "C" fn _initialize() { log("_initialize"); if false { let _ = S.with(|s| s.borrow().root); } }
#[no_mangle] pub extern "C" fn main(_: u32, _: u32) -> u32 { log("main"); 0 }
#[no_mangle] pub extern "C" fn proxy_on_context_create(id: u32, parent: u32) { l!("on_context_create({}, {})", id, parent); if parent == 0 { S.with(|s| s.borrow_mut().root = id) } else { S.with(|s| { s.borrow_mut().ctx.insert(id, Ctx::default()); }) } }
#[no_mangle] pub extern "C" fn proxy_on_vm_start(id: u32, n: u32) -> u32 { let c = config(6, n); l!("on_vm_start({}, {}) config={:?}", id, n, c); if let Some(f) = c.strip_prefix("fault=") { fault(f); } if c == "sweep" { sweep("vm_start"); } if c == "props" { props("vm_start") } if c == "wasi" { wasi() } if c == "false" { 0 } else { 1 } }
#[no_mangle] pub extern "C" fn proxy_on_configure(id: u32, n: u32) -> u32 { let c = config(7, n); l!("on_configure({}, {}) config={:?}", id, n, c); S.with(|s| { let mut s = s.borrow_mut(); s.root = id; s.cfg = c.clone(); }); if let Some(f) = c.strip_prefix("fault=") { fault(f); } for o in c.split(',') { if let Some(ms) = o.strip_prefix("tick=") { unsafe { proxy_set_tick_period_milliseconds(ms.parse().unwrap_or(100)); } } if o == "sweep" { sweep("configure"); } if o == "props" { props("configure") } if o == "foreign" { foreign() } if o == "queue" { let mut t = 0; let k = "probe_queue"; unsafe { proxy_register_shared_queue(k.as_ptr(), k.len(), &mut t); } l!("queue {}", t); } if let Some(p) = o.strip_prefix("call=") { let (r, t) = http_call("callout", &[(":method", "GET"), (":path", p), (":authority", "callout.test")], "", &[], 500); l!("configure call => {} {}", r, t); } } if c == "false" { 0 } else { 1 } }
#[no_mangle] pub extern "C" fn proxy_on_tick(id: u32) { let parked: Vec<(u32, u32)> = S.with(|s| std::mem::take(&mut s.borrow_mut().parked)); if !parked.is_empty() { l!("on_tick({}) parked={:?}", id, parked.iter().map(|x| x.1).collect::<Vec<_>>()); } if S.with(|s| s.borrow().cfg.contains("tickfault")) { fault("unreachable"); } for (c, t) in parked { let e = unsafe { proxy_set_effective_context(c) }; if t >= 100 { let r = local(t, "", "from tick\n", &[], -1); l!("tick effective => {} local => {}", e, r); } else { let r = cont(t); l!("tick effective => {} continue({}) => {}", e, t, r); } } }
#[no_mangle] pub extern "C" fn proxy_on_queue_ready(id: u32, tok: u32) { let (mut p, mut n) = (0, 0); let r = unsafe { proxy_dequeue_shared_queue(tok, &mut p, &mut n) }; l!("on_queue_ready({}, {}) dequeue => {} {}", id, tok, r, show(&take(p, n))); }
fn remember(c: u32) { let (r, v) = pairs(0); if r != 0 || v.len() < 4 { return } let n = u32::from_le_bytes(v[0..4].try_into().unwrap()) as usize; let mut o = 4 + 8 * n; let mut m = HashMap::new(); for i in 0..n { let kl = u32::from_le_bytes(v[4 + 8 * i..8 + 8 * i].try_into().unwrap()) as usize; let vl = u32::from_le_bytes(v[8 + 8 * i..12 + 8 * i].try_into().unwrap()) as usize; let k = String::from_utf8_lossy(&v[o..o + kl]).to_string(); o += kl + 1; let val = String::from_utf8_lossy(&v[o..o + vl]).to_string(); o += vl + 1; if k.starts_with("x-") { m.insert(k, val); } } S.with(|s| { s.borrow_mut().ctx.entry(c).or_default().h = m; }); }
fn on_req(c: u32, n: u32, eos: u32) -> u32 { l!("on_request_headers({}, {}, {})", c, n, eos); remember(c); act(c, "req-headers", 0) }
fn on_resp(c: u32, n: u32, eos: u32) -> u32 { let st = get(2, ":status"); l!("on_response_headers({}, {}, {}) :status={}", c, n, eos, show(&st.1)); act(c, "resp-headers", 0) }
#[cfg(not(feature = "abi010"))] #[no_mangle] pub extern "C" fn proxy_on_request_headers(c: u32, n: u32, eos: u32) -> u32 { on_req(c, n, eos) }
#[cfg(feature = "abi010")] #[no_mangle] pub extern "C" fn proxy_on_request_headers(c: u32, n: u32) -> u32 { on_req(c, n, 9) }
#[cfg(not(feature = "abi010"))] #[no_mangle] pub extern "C" fn proxy_on_response_headers(c: u32, n: u32, eos: u32) -> u32 { on_resp(c, n, eos) }
#[cfg(feature = "abi010")] #[no_mangle] pub extern "C" fn proxy_on_response_headers(c: u32, n: u32) -> u32 { on_resp(c, n, 9) }
#[no_mangle] pub extern "C" fn proxy_on_request_body(c: u32, n: u32, eos: u32) -> u32 { let (r, m, v) = buf(0, 0, 100000); l!("on_request_body({}, {}, {}) buffer => {} size={} {}", c, n, eos, r, m, show(&v)); if eos != 0 { if let Some(_) = opt(c, "x-req-body-end") { return act(c, "req-body-end", 0) } } act(c, "req-body", 0) }
#[no_mangle] pub extern "C" fn proxy_on_request_trailers(c: u32, n: u32) -> u32 { l!("on_request_trailers({}, {})", c, n); act(c, "req-trailers", 0) }
#[no_mangle] pub extern "C" fn proxy_on_request_metadata(c: u32, n: u32) -> u32 { l!("on_request_metadata({}, {})", c, n); 0 }
#[no_mangle] pub extern "C" fn proxy_on_response_body(c: u32, n: u32, eos: u32) -> u32 { let (r, m, v) = buf(1, 0, 100000); l!("on_response_body({}, {}, {}) buffer => {} size={} {}", c, n, eos, r, m, show(&v)); if eos != 0 { if let Some(_) = opt(c, "x-resp-body-end") { return act(c, "resp-body-end", 0) } } act(c, "resp-body", 0) }
#[no_mangle] pub extern "C" fn proxy_on_response_trailers(c: u32, n: u32) -> u32 { l!("on_response_trailers({}, {})", c, n); act(c, "resp-trailers", 0) }
#[no_mangle] pub extern "C" fn proxy_on_response_metadata(c: u32, n: u32) -> u32 { l!("on_response_metadata({}, {})", c, n); 0 }
#[no_mangle] pub extern "C" fn proxy_on_http_call_response(c: u32, tok: u32, h: u32, b: u32, t: u32) { let (r, n, v) = buf(4, 0, b); let (mut code, mut p, mut s) = (0xdead, 0, 0); let sr = unsafe { proxy_get_status(&mut code, &mut p, &mut s) }; l!("on_http_call_response({}, {}, {}, {}, {}) body => {} {} {} get_status => {} {} {}", c, tok, h, b, t, r, n, show(&v), sr, code, show(&take(p, s))); let (_, st) = get(6, ":status"); l!("call :status {}", show(&st)); if let Some((ctx, phase)) = S.with(|s| s.borrow_mut().calls.remove(&tok)) { let e = unsafe { proxy_set_effective_context(ctx) }; l!("effective({}) => {}", ctx, e); act(ctx, &format!("{}-callback", phase), 0); } }
#[no_mangle] pub extern "C" fn proxy_on_grpc_receive_initial_metadata(c: u32, t: u32, n: u32) { l!("on_grpc_receive_initial_metadata({}, {}, {})", c, t, n); }
#[no_mangle] pub extern "C" fn proxy_on_grpc_receive(c: u32, t: u32, n: u32) { let (r, m, v) = buf(5, 0, n); l!("on_grpc_receive({}, {}, {}) => {} {} {}", c, t, n, r, m, show(&v)); heard(t, "message"); }
#[no_mangle] pub extern "C" fn proxy_on_grpc_receive_trailing_metadata(c: u32, t: u32, n: u32) { l!("on_grpc_receive_trailing_metadata({}, {}, {})", c, t, n); }
#[no_mangle] pub extern "C" fn proxy_on_grpc_close(c: u32, t: u32, st: u32) { l!("on_grpc_close({}, {}, {})", c, t, st); heard(t, "end"); }
#[no_mangle] pub extern "C" fn proxy_on_done(c: u32) -> u32 { l!("on_done({})", c); act(c, "done", 1) }
#[no_mangle] pub extern "C" fn proxy_on_log(c: u32) { let a = get(0, ":path"); let b = get(2, ":status"); l!("on_log({}) req :path {} {} resp :status {} {}", c, a.0, show(&a.1), b.0, show(&b.1)); act(c, "log", 0); }
#[no_mangle] pub extern "C" fn proxy_on_delete(c: u32) { l!("on_delete({})", c); S.with(|s| { s.borrow_mut().ctx.remove(&c); }); }
#[cfg(not(feature = "abi010"))] #[no_mangle] pub extern "C" fn proxy_on_foreign_function(c: u32, f: u32, n: u32) { l!("on_foreign_function({}, {}, {})", c, f, n); }
// TCP
#[no_mangle] pub extern "C" fn proxy_on_new_connection(c: u32) -> u32 { l!("on_new_connection({})", c); if S.with(|s| s.borrow().cfg.contains("tcp-pause-new")) { 1 } else { 0 } }
#[no_mangle] pub extern "C" fn proxy_on_downstream_data(c: u32, n: u32, eos: u32) -> u32 { let (r, m, v) = buf(2, 0, 1000); l!("on_downstream_data({}, {}, {}) => {} {} {}", c, n, eos, r, m, show(&v)); if v.starts_with(b"PREPEND") { let r = setbuf(2, 0, 0, b"pre-"); l!("set => {}", r); } if v.starts_with(b"APPEND") { let r = setbuf(2, 0xffffffff, 0, b"-app"); l!("set => {}", r); } if v.starts_with(b"REPLACE") { let r = setbuf(2, 0, n, b"replaced"); l!("set => {}", r); } if v.starts_with(b"HOLD") && !v.ends_with(b"GO\n") { return 1 } #[cfg(not(feature = "abi010"))] if v.starts_with(b"CLOSE") { let r = unsafe { proxy_close_stream(2) }; l!("close => {}", r); } 0 }
#[no_mangle] pub extern "C" fn proxy_on_upstream_data(c: u32, n: u32, eos: u32) -> u32 { let (r, m, v) = buf(3, 0, 1000); l!("on_upstream_data({}, {}, {}) => {} {} {}", c, n, eos, r, m, show(&v)); 0 }
#[no_mangle] pub extern "C" fn proxy_on_downstream_connection_close(c: u32, t: u32) { l!("on_downstream_connection_close({}, {})", c, t); }
#[no_mangle] pub extern "C" fn proxy_on_upstream_connection_close(c: u32, t: u32) { l!("on_upstream_connection_close({}, {})", c, t); }
