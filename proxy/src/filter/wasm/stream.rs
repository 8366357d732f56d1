//! One exchange or connection as a plugin reaches it.

use std::{borrow::Cow, rc::Rc};

use http::HeaderMap;
use leno_wasm_host::{
    BufferEdit, BufferType, LocalResponse, MapType, Status, Stream, StreamType, pairs::Pairs,
};

use super::{
    buffer::Buffer,
    head, property,
    state::{Answer, Contents, Mark, State},
};

/// What a plugin has in hands, and where it leaves word.
pub(super) struct PluginStream {
    /// On the heap: streams are handed on several times, and this is large.
    pub(super) contents: Box<Contents>,
    state: Rc<State>,
    /// Which of the plugins.
    at: usize,
    /// Given back in good order.
    released: bool,
}

impl PluginStream {
    /// The stream of plugin `at`. `spare` is one that has ended: what is in its place is used again.
    pub(super) fn new(spare: Option<Self>, state: &Rc<State>, at: usize) -> Self {
        let state = state.clone();
        match spare {
            Some(mut spare) => {
                (spare.state, spare.at, spare.released) = (state, at, false);
                spare
            }
            None => Self { contents: Box::default(), state, at, released: false },
        }
    }

    /// The plugin was told of the end: whatever it still has is nobody's.
    pub(super) fn release(mut self, nobody: &Rc<State>) -> Self {
        self.contents.clear();
        (self.state, self.released) = (nobody.clone(), true);
        self
    }

    fn mark(&self) -> Option<&Mark> {
        self.state.marks.get(self.at)
    }

    fn buffer(&self, buffer: BufferType) -> Option<&Buffer> {
        self.contents.buffers.get(side_of_buffer(buffer)?)
    }

    fn trailers(&self, map: MapType) -> Option<&HeaderMap> {
        self.contents.trailers.get(side_of_trailers(map)?)?.as_deref()
    }

    fn trailers_mut(&mut self, map: MapType) -> Option<&mut HeaderMap> {
        let trailers = self.contents.trailers.get_mut(side_of_trailers(map)?)?;
        Some(trailers.get_or_insert_default())
    }
}

impl Drop for PluginStream {
    /// Still in the hands of an instance that is no more: whoever drives the exchange decides what becomes of it.
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let contents = std::mem::take(&mut self.contents);
        if let Some(mark) = self.mark() {
            mark.lost.replace(Some(contents));
        }
        self.state.wake();
    }
}

/// Request and what comes from downstream, response and what comes from upstream.
fn side_of_buffer(buffer: BufferType) -> Option<usize> {
    match buffer {
        BufferType::RequestBody | BufferType::DownstreamData => Some(0),
        BufferType::ResponseBody | BufferType::UpstreamData => Some(1),
        _ => None,
    }
}

fn side_of_trailers(map: MapType) -> Option<usize> {
    match map {
        MapType::RequestTrailers => Some(0),
        MapType::ResponseTrailers => Some(1),
        _ => None,
    }
}

impl Stream for PluginStream {
    fn has_map(&self, map: MapType) -> bool {
        match map {
            MapType::RequestHeaders => {
                self.contents.request().is_some() || self.state.request.get().is_some()
            }
            MapType::ResponseHeaders => {
                self.contents.response().is_some() || self.state.response.get().is_some()
            }
            MapType::RequestTrailers | MapType::ResponseTrailers => true,
            _ => false,
        }
    }

    fn header(&self, map: MapType, name: &[u8]) -> Option<&[u8]> {
        match map {
            MapType::RequestHeaders => match self.contents.request() {
                Some(head) => head.get(name),
                None => self.state.request.get()?.get(name),
            },
            MapType::ResponseHeaders => match self.contents.response() {
                Some(head) => head.get(name),
                None => self.state.response.get()?.get(name),
            },
            map => head::find(self.trailers(map)?, name),
        }
    }

    fn visit_headers(&self, map: MapType, visit: &mut dyn FnMut(&[u8], &[u8])) {
        match map {
            MapType::RequestHeaders => match (self.contents.request(), self.state.request.get()) {
                (Some(head), _) => head.visit(visit),
                (None, kept) => kept.into_iter().for_each(|kept| kept.visit(visit)),
            },
            MapType::ResponseHeaders => {
                match (self.contents.response(), self.state.response.get()) {
                    (Some(head), _) => head.visit(visit),
                    (None, kept) => kept.into_iter().for_each(|kept| kept.visit(visit)),
                }
            }
            map => {
                for (name, value) in self.trailers(map).into_iter().flatten() {
                    visit(name.as_str().as_bytes(), value.as_bytes());
                }
            }
        }
    }

    fn set_headers(&mut self, map: MapType, headers: Pairs<'_>) {
        match map {
            MapType::RequestHeaders => {
                if let Some(head) = self.contents.request_mut() {
                    head.set_all(headers);
                }
            }
            MapType::ResponseHeaders => {
                if let Some(head) = self.contents.response_mut() {
                    head.set_all(headers);
                }
            }
            map => {
                if let Some(trailers) = self.trailers_mut(map) {
                    trailers.clear();
                    for (name, value) in headers.iter() {
                        head::append(trailers, &mut None, None, name, value);
                    }
                }
            }
        }
    }

    fn add_header(&mut self, map: MapType, name: &[u8], value: &[u8]) {
        match map {
            MapType::RequestHeaders => {
                if let Some(head) = self.contents.request_mut() {
                    head.add(name, value);
                }
            }
            MapType::ResponseHeaders => {
                if let Some(head) = self.contents.response_mut() {
                    head.add(name, value);
                }
            }
            map => {
                if let Some(trailers) = self.trailers_mut(map) {
                    head::append(trailers, &mut None, None, name, value);
                }
            }
        }
    }

    fn replace_header(&mut self, map: MapType, name: &[u8], value: &[u8]) {
        match map {
            MapType::RequestHeaders => {
                if let Some(head) = self.contents.request_mut() {
                    head.replace(name, value);
                }
            }
            MapType::ResponseHeaders => {
                if let Some(head) = self.contents.response_mut() {
                    head.replace(name, value);
                }
            }
            map => {
                if let Some(trailers) = self.trailers_mut(map) {
                    head::replace(trailers, &mut None, name, value);
                }
            }
        }
    }

    fn remove_header(&mut self, map: MapType, name: &[u8]) {
        match map {
            MapType::RequestHeaders => {
                if let Some(head) = self.contents.request_mut() {
                    head.remove(name);
                }
            }
            MapType::ResponseHeaders => {
                if let Some(head) = self.contents.response_mut() {
                    head.remove(name);
                }
            }
            map => {
                if let Some(trailers) = self.trailers_mut(map) {
                    head::remove(trailers, name);
                }
            }
        }
    }

    fn buffer_length(&self, buffer: BufferType) -> usize {
        self.buffer(buffer).map_or(0, Buffer::len)
    }

    fn copy_buffer(&self, buffer: BufferType, start: usize, target: &mut [u8]) {
        let bytes = self.buffer(buffer).map_or(&[][..], Buffer::bytes);
        if let Some(bytes) = bytes.get(start..start + target.len()) {
            target.copy_from_slice(bytes);
        }
    }

    fn edit_buffer(&mut self, buffer: BufferType, edit: BufferEdit<'_>) {
        let side = side_of_buffer(buffer);
        if let Some(buffer) = side.and_then(|side| self.contents.buffers.get_mut(side)) {
            buffer.edit(edit);
        }
    }

    fn send_local_response(&mut self, response: LocalResponse<'_>) {
        if let Some(mark) = self.mark() {
            mark.answer.replace(Some(Box::new(Answer::of(&response))));
        }
        self.state.wake();
    }

    fn continue_stream(&mut self, direction: StreamType) {
        if let Some(mark) = self.mark() {
            let side =
                usize::from(matches!(direction, StreamType::Response | StreamType::Upstream));
            mark.continued[side].set(true);
        }
        self.state.wake();
    }

    fn close_stream(&mut self, _direction: StreamType) {
        if let Some(mark) = self.mark() {
            mark.closed.set(true);
        }
        self.state.wake();
    }

    fn property(&self, path: &[u8]) -> Result<Cow<'_, [u8]>, Status> {
        property::of_stream(&self.state, path)
    }

    fn set_property(&mut self, path: &[u8], value: &[u8]) -> Result<(), Status> {
        if self.state.keep(path, value) { Ok(()) } else { Err(Status::InternalFailure) }
    }

    /// Plugins see a request before its route is chosen, so there is none to forget.
    fn clear_route_cache(&mut self) {}
}

impl Answer {
    fn of(response: &LocalResponse<'_>) -> Self {
        let mut headers = HeaderMap::new();
        let mut forbidden = None;
        for (name, value) in response.headers.iter() {
            if name.first() != Some(&b':') {
                head::append(&mut headers, &mut forbidden, None, name, value);
            }
        }
        Self {
            status: response.status,
            details: String::from_utf8_lossy(response.details).into_owned(),
            headers,
            body: response.body.to_vec(),
            grpc_status: response.grpc_status,
            forbidden,
        }
    }
}
