//! Names of fields as upstreams write them: a service says the same ones in each answer. To look one up takes a third of
//! the time of reading it, and one that is not in the standard takes no memory of its own then.

use std::cell::RefCell;

use http::{HeaderName, header::InvalidHeaderName};

/// How many are kept, for all connections of a thread.
const PLACES: usize = 128;
/// Longer ones are read each time.
const LONGEST: usize = 40;

thread_local! {
    static NAMES: RefCell<Names> = const { RefCell::new(Names(Vec::new())) };
}

/// Each has one place, and takes it from whoever has it.
struct Names(Vec<Option<Known>>);

struct Known {
    written: Box<[u8]>,
    name: HeaderName,
}

/// The name that is written so.
///
/// # Errors
/// When it is none (RFC 9110 section 5.1).
pub(super) fn read(written: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
    match place(written) {
        Some(place) => NAMES.with_borrow_mut(|names| names.read(written, place)),
        None => HeaderName::from_bytes(written),
    }
}

fn place(written: &[u8]) -> Option<usize> {
    let ([first, .., last], ..=LONGEST) = (written, written.len()) else { return None };
    let middle = written[written.len() / 2];
    let mixed = written.len() * 7 + usize::from(*first) * 3 + usize::from(*last) * 5;
    Some((mixed + usize::from(middle) * 11) % PLACES)
}

impl Names {
    fn read(&mut self, written: &[u8], place: usize) -> Result<HeaderName, InvalidHeaderName> {
        if let Some(Some(known)) = self.0.get(place)
            && *known.written == *written
        {
            return Ok(known.name.clone());
        }
        let name = HeaderName::from_bytes(written)?;
        if self.0.is_empty() {
            self.0.resize_with(PLACES, || None);
        }
        self.0[place] = Some(Known { written: written.into(), name: name.clone() });
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_reads_what_the_library_reads(
            written in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..20),
            usual in prop::collection::vec("[A-Za-z-]{1,12}", 1..200),
        ) {
            let usual = usual.iter().map(|name| name.as_bytes());
            for written in written.iter().map(Vec::as_slice).chain(usual.clone()).chain(usual) {
                prop_assert_eq!(read(written).ok(), HeaderName::from_bytes(written).ok());
            }
        }
    }

    #[test]
    fn what_a_service_says_often_is_kept() {
        let mut names = Names(Vec::new());
        let usual = [
            "Content-Type",
            "Content-Length",
            "Date",
            "Server",
            "Connection",
            "Cache-Control",
            "ETag",
            "Last-Modified",
            "Vary",
            "Set-Cookie",
            "X-Request-Id",
            "Transfer-Encoding",
        ];
        let usual = usual.iter().flat_map(|name| [(*name).to_owned(), name.to_lowercase()]);
        let usual: Vec<String> = usual.collect();
        for _ in 0..2 {
            for name in &usual {
                names.read(name.as_bytes(), place(name.as_bytes()).unwrap()).unwrap();
            }
        }
        assert_eq!(names.0.len(), PLACES);
        let kept = names.0.iter().flatten().count();
        assert!(kept * 10 >= usual.len() * 8, "{kept} of {}", usual.len());
    }
}
