//! One exchange or connection as a plugin reaches it.

use std::{borrow::Cow, cell::Cell, rc::Rc};

use http::HeaderMap;
use leno_wasm_host::{
    BufferEdit, BufferType, LocalResponse, MapType, Status, Stream, StreamType, pairs::Pairs,
};

use super::{
    buffer::Buffer,
    head::{self, RequestHead, ResponseHead},
    property,
    state::{Answer, Contents, Mark, State},
};

/// What a plugin has in hands, and where it leaves word.
pub(super) struct PluginStream {
    /// Only while the plugin has anything: most have nothing but while they are called.
    contents: Option<Box<Contents>>,
    state: Rc<State>,
    /// Which of the plugins.
    at: usize,
    /// Given back in good order.
    released: bool,
}

/// What the last plugin had in hands, for the next one: it is large, and in the processor's cache.
pub(super) type Spare = Cell<Option<Box<Contents>>>;

impl PluginStream {
    /// The stream of plugin `at`.
    pub(super) fn new(state: &Rc<State>, at: usize) -> Self {
        Self { contents: None, state: state.clone(), at, released: false }
    }

    /// What it has in hands.
    pub(super) fn contents(&mut self, spare: &Spare) -> &mut Contents {
        self.contents.get_or_insert_with(|| spare.take().unwrap_or_default())
    }

    /// The plugin has let go of something, and perhaps of everything.
    pub(super) fn let_go(&mut self, spare: &Spare) {
        if self.contents.as_ref().is_some_and(|contents| contents.is_clear()) {
            spare.set(self.contents.take());
        }
    }

    /// The plugin was told of the end: whatever it still has is nobody's.
    pub(super) fn release(mut self, spare: &Spare) {
        self.released = true;
        if let Some(mut contents) = self.contents.take() {
            contents.clear();
            spare.set(Some(contents));
        }
    }

    fn has(&self) -> Option<&Contents> {
        self.contents.as_deref()
    }

    fn request(&self) -> Option<&RequestHead> {
        self.has()?.request()
    }

    fn response(&self) -> Option<&ResponseHead> {
        self.has()?.response()
    }

    fn request_mut(&mut self) -> Option<&mut RequestHead> {
        self.contents.as_deref_mut()?.request_mut()
    }

    fn response_mut(&mut self) -> Option<&mut ResponseHead> {
        self.contents.as_deref_mut()?.response_mut()
    }

    fn mark(&self) -> Option<&Mark> {
        self.state.marks.get(self.at)
    }

    fn buffer(&self, buffer: BufferType) -> Option<&Buffer> {
        self.has()?.buffers.get(side_of_buffer(buffer)?)
    }

    fn trailers(&self, map: MapType) -> Option<&HeaderMap> {
        self.has()?.trailers.get(side_of_trailers(map)?)?.as_deref()
    }

    fn trailers_mut(&mut self, map: MapType) -> Option<&mut HeaderMap> {
        let contents = self.contents.get_or_insert_default();
        let trailers = contents.trailers.get_mut(side_of_trailers(map)?)?;
        Some(trailers.get_or_insert_default())
    }
}

impl Drop for PluginStream {
    /// Still in the hands of an instance that is no more: whoever drives the exchange decides what becomes of it.
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let contents = self.contents.take().unwrap_or_default();
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
                self.request().is_some() || self.state.request.get().is_some()
            }
            MapType::ResponseHeaders => {
                self.response().is_some() || self.state.response.get().is_some()
            }
            MapType::RequestTrailers | MapType::ResponseTrailers => true,
            _ => false,
        }
    }

    fn header(&self, map: MapType, name: &[u8]) -> Option<&[u8]> {
        match map {
            MapType::RequestHeaders => match self.request() {
                Some(head) => head.get(name),
                None => self.state.request.get()?.get(name),
            },
            MapType::ResponseHeaders => match self.response() {
                Some(head) => head.get(name),
                None => self.state.response.get()?.get(name),
            },
            map => head::find(self.trailers(map)?, name),
        }
    }

    fn visit_headers(&self, map: MapType, visit: &mut dyn FnMut(&[u8], &[u8])) {
        match map {
            MapType::RequestHeaders => match (self.request(), self.state.request.get()) {
                (Some(head), _) => head.visit(visit),
                (None, kept) => kept.into_iter().for_each(|kept| kept.visit(visit)),
            },
            MapType::ResponseHeaders => match (self.response(), self.state.response.get()) {
                (Some(head), _) => head.visit(visit),
                (None, kept) => kept.into_iter().for_each(|kept| kept.visit(visit)),
            },
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
                if let Some(head) = self.request_mut() {
                    head.set_all(headers);
                }
            }
            MapType::ResponseHeaders => {
                if let Some(head) = self.response_mut() {
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
                if let Some(head) = self.request_mut() {
                    head.add(name, value);
                }
            }
            MapType::ResponseHeaders => {
                if let Some(head) = self.response_mut() {
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
                if let Some(head) = self.request_mut() {
                    head.replace(name, value);
                }
            }
            MapType::ResponseHeaders => {
                if let Some(head) = self.response_mut() {
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
                if let Some(head) = self.request_mut() {
                    head.remove(name);
                }
            }
            MapType::ResponseHeaders => {
                if let Some(head) = self.response_mut() {
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
        let contents = self.contents.as_deref_mut();
        if let Some(buffer) = contents.zip(side).and_then(|(has, side)| has.buffers.get_mut(side)) {
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
