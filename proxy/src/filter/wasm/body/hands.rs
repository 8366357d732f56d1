//! What is put into a plugin's hands of a body, and what it lets go of.

use bytes::Bytes;
use http::HeaderMap;
use leno_wasm_host::{Action, ContextId, Instance};

use crate::filter::wasm::{host::ProxyHost, run::Side, stream::Spare};

/// What a plugin let go of.
pub(in crate::filter::wasm) struct Released {
    pub(in crate::filter::wasm) action: Action,
    pub(in crate::filter::wasm) bytes: Bytes,
    pub(in crate::filter::wasm) trailers: Option<Box<HeaderMap>>,
    /// What it still holds.
    pub(in crate::filter::wasm) held: usize,
    /// Whether bytes are gone that it did not want.
    pub(in crate::filter::wasm) dropped: bool,
}

/// Puts a part, if it has not been put there yet, behind what the plugin has. How much that is.
pub(in crate::filter::wasm) fn give(
    instance: &mut Instance<ProxyHost>,
    spare: &Spare,
    context: ContextId,
    side: Side,
    bytes: &mut Option<Bytes>,
) -> usize {
    let Some(stream) = instance.stream_mut(context) else { return 0 };
    let buffer = &mut stream.contents(spare).buffers[side as usize];
    buffer.push(bytes.take().unwrap_or_default());
    buffer.len()
}

/// Takes what the plugin let go of. Of `bytes` that is left which it did not get.
pub(in crate::filter::wasm) fn let_go(
    instance: &mut Instance<ProxyHost>,
    spare: &Spare,
    context: ContextId,
    side: Side,
    action: Action,
    end: bool,
    bytes: &mut Option<Bytes>,
) -> Released {
    if action != Action::Continue && bytes.is_some() {
        give(instance, spare, context, side, bytes);
    }
    let released = release(instance, spare, context, side, action, end);
    match bytes.take() {
        Some(bytes) => Released { bytes, ..released },
        None => released,
    }
}

/// Takes out of the stream what the plugin let go of.
pub(in crate::filter::wasm) fn release(
    instance: &mut Instance<ProxyHost>,
    spare: &Spare,
    context: ContextId,
    side: Side,
    action: Action,
    end: bool,
) -> Released {
    let bytes = Bytes::new();
    let mut released = Released { action, bytes, trailers: None, held: 0, dropped: false };
    let stream = instance.stream_mut(context);
    let Some(stream) = stream.filter(|stream| stream.has_anything()) else { return released };
    let contents = stream.contents(spare);
    let buffer = &mut contents.buffers[side as usize];
    match action {
        Action::Continue => {
            released.bytes = buffer.take();
            if end {
                let trailers = contents.trailers[side as usize].take();
                released.trailers = trailers.filter(|trailers| !trailers.is_empty());
            }
        }
        Action::Pause => released.held = buffer.len(),
        Action::PauseWithoutView => released.bytes = buffer.take(),
        Action::Discard => released.dropped = !buffer.take().is_empty(),
    }
    stream.let_go(spare);
    released
}
