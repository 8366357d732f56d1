//! What the plugin sees of a request.

use std::{borrow::Cow, cell::RefCell, rc::Rc};

use leno_wasm_host::{
    BufferEdit, BufferType, Headers, LocalResponse, MapType, Status, Stream, StreamType,
    pairs::Pairs,
};

use super::{World, services::owned};

/// A request and its response on their way through the plugin.
pub struct DeskStream {
    world: Rc<RefCell<World>>,
    /// Request, its trailers, response, its trailers.
    pub maps: [Option<Headers>; 4],
    /// The bodies of both.
    pub buffers: [Vec<u8>; 2],
    pub local: Option<Local>,
    /// Which directions were continued.
    pub continued: [bool; 2],
    pub closed: bool,
    /// What plugins set with `proxy_set_property`.
    properties: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An answer of the plugin.
#[derive(Clone, Debug)]
pub struct Local {
    pub status: u32,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub grpc_status: Option<u32>,
}

/// Properties that one stream may set: a plugin that sets more sets a new one each time.
const PROPERTIES: usize = 1_000;

impl DeskStream {
    pub fn new(world: Rc<RefCell<World>>) -> Self {
        Self {
            world,
            maps: Default::default(),
            buffers: Default::default(),
            local: None,
            continued: [false; 2],
            closed: false,
            properties: Vec::new(),
        }
    }

    fn map(&self, map: MapType) -> &[(Vec<u8>, Vec<u8>)] {
        self.maps.get(map as usize).and_then(Option::as_deref).unwrap_or_default()
    }

    fn change(&mut self, map: MapType, change: impl FnOnce(&mut Headers)) {
        if let Some(headers) = self.maps.get_mut(map as usize) {
            change(headers.get_or_insert_default());
        }
    }

    fn buffer(&self, buffer: BufferType) -> &[u8] {
        self.buffers.get(buffer as usize).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Stream for DeskStream {
    fn has_map(&self, map: MapType) -> bool {
        let trailers = matches!(map, MapType::RequestTrailers | MapType::ResponseTrailers);
        trailers || self.maps.get(map as usize).is_some_and(Option::is_some)
    }

    fn header(&self, map: MapType, name: &[u8]) -> Option<&[u8]> {
        self.map(map).iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice())
    }

    fn visit_headers(&self, map: MapType, visit: &mut dyn FnMut(&[u8], &[u8])) {
        self.map(map).iter().for_each(|(name, value)| visit(name, value));
    }

    fn set_headers(&mut self, map: MapType, headers: Pairs<'_>) {
        self.change(map, |all| *all = owned(headers));
    }

    fn add_header(&mut self, map: MapType, name: &[u8], value: &[u8]) {
        self.change(map, |all| all.push((name.to_vec(), value.to_vec())));
    }

    fn replace_header(&mut self, map: MapType, name: &[u8], value: &[u8]) {
        self.change(map, |all| {
            let place = all.iter().position(|(key, _)| key == name).unwrap_or(all.len());
            all.retain(|(key, _)| key != name);
            all.insert(place.min(all.len()), (name.to_vec(), value.to_vec()));
        });
    }

    fn remove_header(&mut self, map: MapType, name: &[u8]) {
        self.change(map, |all| all.retain(|(key, _)| key != name));
    }

    fn buffer_length(&self, buffer: BufferType) -> usize {
        self.buffer(buffer).len()
    }

    fn copy_buffer(&self, buffer: BufferType, start: usize, target: &mut [u8]) {
        let end = start.saturating_add(target.len());
        if let Some(bytes) = self.buffer(buffer).get(start..end) {
            target.copy_from_slice(bytes);
        }
    }

    fn edit_buffer(&mut self, buffer: BufferType, edit: BufferEdit<'_>) {
        let Some(bytes) = self.buffers.get_mut(buffer as usize) else { return };
        match edit {
            BufferEdit::Front { dropped, bytes: new } => {
                bytes.splice(..dropped.min(bytes.len()), new.iter().copied());
            }
            BufferEdit::Append(new) => bytes.extend_from_slice(new),
        }
    }

    fn send_local_response(&mut self, response: LocalResponse<'_>) {
        self.local = Some(Local {
            status: response.status,
            headers: owned(response.headers),
            body: response.body.to_vec(),
            grpc_status: response.grpc_status,
        });
    }

    fn continue_stream(&mut self, direction: StreamType) {
        if let Some(continued) = self.continued.get_mut(direction as usize) {
            *continued = true;
        }
    }

    fn close_stream(&mut self, _direction: StreamType) {
        self.closed = true;
    }

    fn property(&self, path: &[u8]) -> Result<Cow<'_, [u8]>, Status> {
        let set = self.properties.iter().find(|(known, _)| known == path);
        if let Some((_, value)) = set {
            return Ok(Cow::Borrowed(value));
        }
        let value = self.world.borrow().properties.get(path).cloned();
        value.map(Cow::Owned).ok_or(Status::NotFound)
    }

    fn set_property(&mut self, path: &[u8], value: &[u8]) -> Result<(), Status> {
        let full = self.properties.len() == PROPERTIES;
        match self.properties.iter_mut().find(|(known, _)| known == path) {
            Some((_, known)) => *known = value.to_vec(),
            None if full => return Err(Status::InternalFailure),
            None => self.properties.push((path.to_vec(), value.to_vec())),
        }
        Ok(())
    }

    fn clear_route_cache(&mut self) {}
}
