//! Parts of a body between plugins and whoever reads it. Pure.

use std::collections::VecDeque;

use bytes::Bytes;
use http::HeaderMap;

/// What moves.
#[derive(Debug)]
pub(in crate::filter::wasm) enum Piece {
    /// Bytes, and whether they are the last.
    Data(Bytes, bool),
    Trailers(Box<HeaderMap>),
}

/// Pieces in their order. Mostly there is one at a time.
#[derive(Debug, Default)]
pub(in crate::filter::wasm) struct Pieces {
    first: Option<Piece>,
    others: VecDeque<Piece>,
}

impl Pieces {
    pub(in crate::filter::wasm) fn push(&mut self, piece: Piece) {
        match &self.first {
            None => self.first = Some(piece),
            Some(_) => self.others.push_back(piece),
        }
    }

    pub(in crate::filter::wasm) fn pop(&mut self) -> Option<Piece> {
        let first = self.first.take()?;
        if !self.others.is_empty() {
            self.first = self.others.pop_front();
        }
        Some(first)
    }

    pub(in crate::filter::wasm) fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}
