//! The plugins: modules of the Proxy-Wasm ABI 0.2.1, made from text when the suite runs, so that no toolchain is needed.
//!
//! Each exports what a plugin of the Rust SDK exports, also the callbacks for bodies in which it does nothing: that is
//! what hosts pay for in practice. The allocator gives the same memory for every call, so the guest's share is small and
//! the hosts are what differs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// What `ADD` adds to answers.
pub const ADDED: (&str, &str) = ("x-plugin", "1234");

/// A plugin, by what it does to a request and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    Nothing,
    AddHeader,
    ReadHeaders,
    RewriteBody,
    /// Does nothing, but is as large as plugins with their libraries are.
    Large,
}

impl Guest {
    pub fn name(self) -> &'static str {
        match self {
            Guest::Nothing => "noop",
            Guest::AddHeader => "add",
            Guest::ReadHeaders => "read",
            Guest::RewriteBody => "rewrite",
            Guest::Large => "large",
        }
    }

    pub fn module(self) -> Result<Vec<u8>> {
        let text = match self {
            Guest::Nothing => text(&Body::default()),
            Guest::AddHeader => text(&add_header()),
            Guest::ReadHeaders => text(&read_headers()),
            Guest::RewriteBody => text(&rewrite_body()),
            Guest::Large => text(&large()),
        };
        wat::parse_str(text).with_context(|| format!("assemble the plugin `{}`", self.name()))
    }

    /// Writes the module into `directory`.
    pub fn write(self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join(format!("{}.wasm", self.name()));
        std::fs::write(&path, self.module()?)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// What differs between the modules.
#[derive(Default)]
struct Body {
    /// Functions of the host, and what the module calls them.
    imports: &'static [(&'static str, &'static str)],
    data: String,
    functions: String,
    request_headers: String,
    response_headers: String,
    /// Its result is the action.
    response_body: Option<&'static str>,
    pages: Option<usize>,
}

/// Where the guests keep what they say.
const TEXTS: usize = 256;
/// Where the allocator puts what the host gives.
const HEAP: usize = 4096;
/// Where pointer and length of it are put.
const RESULT: (usize, usize) = (16, 20);
const REQUEST_HEADERS: usize = 0;
const RESPONSE_HEADERS: usize = 2;

fn text(body: &Body) -> String {
    let imports: String =
        body.imports.iter().map(|(function, name)| import(function, name)).collect();
    let Body { data, functions, request_headers, response_headers, .. } = body;
    let (pages, response_body) =
        (body.pages.unwrap_or(2), body.response_body.unwrap_or("(i32.const 0)"));
    format!(
        "(module
           {imports}
           (memory (export \"memory\") {pages})
           {data}
           {functions}
           (func (export \"proxy_abi_version_0_2_1\"))
           (func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (i32.const {HEAP}))
           (func (export \"proxy_on_vm_start\") (param i32 i32) (result i32) (i32.const 1))
           (func (export \"proxy_on_configure\") (param i32 i32) (result i32) (i32.const 1))
           (func (export \"proxy_on_context_create\") (param i32 i32))
           (func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32)
             {request_headers} (i32.const 0))
           (func (export \"proxy_on_request_body\") (param i32 i32 i32) (result i32) (i32.const 0))
           (func (export \"proxy_on_request_trailers\") (param i32 i32) (result i32) (i32.const 0))
           (func (export \"proxy_on_response_headers\") (param i32 i32 i32) (result i32)
             {response_headers} (i32.const 0))
           (func (export \"proxy_on_response_body\") (param $context i32) (param $size i32) (param $end i32)
             (result i32) {response_body})
           (func (export \"proxy_on_response_trailers\") (param i32 i32) (result i32) (i32.const 0))
           (func (export \"proxy_on_done\") (param i32) (result i32) (i32.const 1))
           (func (export \"proxy_on_log\") (param i32))
           (func (export \"proxy_on_delete\") (param i32)))"
    )
}

/// Only what is used, as linkers leave it: hosts may go by what a module could do.
fn import(function: &str, name: &str) -> String {
    let five = ["i32"; 5].join(" ");
    format!("(import \"env\" \"{function}\" (func ${name} (param {five}) (result i32)))")
}

fn add_header() -> Body {
    let (name, value) = ADDED;
    let (at, length) = (TEXTS + name.len(), value.len());
    Body {
        imports: &[("proxy_add_header_map_value", "add")],
        data: format!("(data (i32.const {TEXTS}) \"{name}{value}\")"),
        response_headers: format!(
            "(drop (call $add (i32.const {RESPONSE_HEADERS}) (i32.const {TEXTS}) (i32.const {})
             (i32.const {at}) (i32.const {length})))",
            name.len()
        ),
        ..Body::default()
    }
}

/// Ten that every host has. One that is missing traps, so that nothing else than ten is ever measured.
fn read_headers() -> Body {
    let request = [
        ":method",
        ":path",
        ":authority",
        ":scheme",
        "user-agent",
        "accept",
        "accept-encoding",
        "traceparent",
    ];
    let response = ["content-type", "etag"];
    let mut body = Body { imports: &[("proxy_get_header_map_value", "get")], ..Body::default() };
    let mut at = TEXTS;
    let mut read = |map: usize, name: &str, calls: &mut String| {
        let _ = write!(body.data, "(data (i32.const {at}) \"{name}\")");
        let _ = write!(
            calls,
            "(if (call $get (i32.const {map}) (i32.const {at}) (i32.const {}) (i32.const {}) (i32.const {}))
               (then unreachable))",
            name.len(),
            RESULT.0,
            RESULT.1
        );
        at += name.len();
    };
    let (mut of_request, mut of_response) = (String::new(), String::new());
    request.iter().for_each(|name| read(REQUEST_HEADERS, name, &mut of_request));
    response.iter().for_each(|name| read(RESPONSE_HEADERS, name, &mut of_response));
    Body { request_headers: of_request, response_headers: of_response, ..body }
}

/// Waits for the whole, makes its lower case letters capitals, and puts it back.
fn rewrite_body() -> Body {
    Body {
        imports: &[("proxy_get_buffer_bytes", "read"), ("proxy_set_buffer_bytes", "write")],
        response_body: Some(
            "(local $at i32) (local $stop i32)
             (if (i32.eqz (local.get $end)) (then (return (i32.const 1))))
             (if (call $read (i32.const 1) (i32.const 0) (local.get $size) (i32.const 16) (i32.const 20))
               (then unreachable))
             (local.set $at (i32.load (i32.const 16)))
             (local.set $stop (i32.add (local.get $at) (i32.load (i32.const 20))))
             (block $done
               (loop $next
                 (br_if $done (i32.ge_u (local.get $at) (local.get $stop)))
                 (i32.store8 (local.get $at)
                   (i32.and (i32.load8_u (local.get $at)) (i32.const 0xdf)))
                 (local.set $at (i32.add (local.get $at) (i32.const 1)))
                 (br $next)))
             (if (call $write (i32.const 1) (i32.const 0) (local.get $size) (i32.load (i32.const 16))
                 (i32.load (i32.const 20)))
               (then unreachable))
             (i32.const 0)",
        ),
        ..Body::default()
    }
}

/// Functions of `large`, blocks of instructions in each, and bytes of its data: 3 MiB in all, three quarters of
/// them code, as in plugins that carry their libraries.
const FUNCTIONS: usize = 4_200;
const BLOCKS: usize = 10;
const DATA: usize = 700 * 1024;

fn large() -> Body {
    let mut functions = String::from(
        "(func $f0 (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))",
    );
    for number in 1..=FUNCTIONS {
        let _ = write!(
            functions,
            "(func $f{number} (param i32 i32) (result i32) (local i32 i32) (local.set 2 (local.get 0))"
        );
        for block in 0..BLOCKS {
            let constant = (number * 2_654_435 + block * 40_503) % 60_000;
            let _ = write!(
                functions,
                "(local.set 2 (i32.add (local.get 2) (i32.const {constant})))
                 (local.set 3 (i32.xor (local.get 1)
                   (i32.load offset={constant} (i32.and (local.get 2) (i32.const 0xffff)))))
                 (if (i32.lt_u (local.get 3) (local.get 2))
                   (then (local.set 2 (i32.mul (local.get 3) (i32.const 31))))
                   (else (i32.store offset={constant} (i32.and (local.get 3) (i32.const 0xffff))
                     (local.get 2))))"
            );
        }
        let _ = write!(functions, "(call $f{} (local.get 2) (local.get 3)))", number - 1);
    }
    // Exported, or a compiler might find out that nobody needs any of it.
    let _ = write!(functions, "(export \"everything\" (func $f{FUNCTIONS}))");
    let data: String =
        (0..DATA).map(|at| char::from(b'a' + u8::try_from(at * 7 % 26).unwrap_or(0))).collect();
    Body {
        functions,
        data: format!("(data (i32.const 65536) \"{data}\")"),
        pages: Some(32),
        ..Body::default()
    }
}

#[cfg(test)]
mod tests {
    use leno_wasm_host::{Engine, EngineSettings, Module};

    use super::*;

    #[test]
    fn every_guest_is_a_plugin() {
        let engine = Engine::new(EngineSettings::default()).unwrap();
        for guest in [Guest::Nothing, Guest::AddHeader, Guest::ReadHeaders, Guest::RewriteBody] {
            Module::compile(&engine, &guest.module().unwrap()).unwrap();
        }
    }

    #[test]
    fn a_large_one_has_three_mebibytes() {
        let bytes = Guest::Large.module().unwrap().len();
        assert!((2_900 << 10..3_300 << 10).contains(&bytes), "{bytes}");
    }
}
