//! Plugins in Envoy, each in a virtual machine of its own on V8, compiled to native code as it does unasked.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::EXTENSIONS;
use crate::peer::Door;

/// The filters of a door: its plugin, if it has one.
pub fn filters(door: &Door) -> Result<Vec<Value>> {
    let Some(module) = &door.plugin else { return Ok(Vec::new()) };
    let module = module.to_str().context("a module whose name is not text")?;
    Ok(vec![json!({
        "name": "envoy.filters.http.wasm",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.http.wasm.v3.Wasm"),
            "config": {
                "name": door.name,
                "vm_config": {
                    "vm_id": door.name,
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": module}},
                },
            },
        },
    })])
}
