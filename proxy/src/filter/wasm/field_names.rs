//! Names of fields that plugins write, kept for the next exchange: a plugin writes the same ones again and again, and making
//! one takes longer than everything else about it.

use std::cell::RefCell;

use http::HeaderName;

/// Of one worker: plugins write few, and what does not fit is made anew.
const PLACES: usize = 16;
/// Longer ones are made anew: whoever writes such must not fill the worker's memory with them.
const LONGEST: usize = 64;

type Names = [Option<HeaderName>; PLACES];

thread_local! {
    static MADE: RefCell<Names> = const { RefCell::new([const { None }; PLACES]) };
}

/// The name; `None` if HTTP has no such.
pub(super) fn of(name: &[u8]) -> Option<HeaderName> {
    MADE.with_borrow_mut(|made| find(made, name))
}

fn find(made: &mut Names, name: &[u8]) -> Option<HeaderName> {
    let place = made.get_mut(place(name))?;
    if let Some(made) = place
        && made.as_str().as_bytes() == name
    {
        return Some(made.clone());
    }
    let new = HeaderName::from_bytes(name).ok()?;
    if name.len() <= LONGEST {
        *place = Some(new.clone());
    }
    Some(new)
}

/// By its length and its ends, which differ in most names.
fn place(name: &[u8]) -> usize {
    let end = |byte: Option<&u8>| byte.map_or(0, |byte| usize::from(*byte));
    (name.len() + 3 * end(name.first()) + 5 * end(name.last())) % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_would_be_without_this() {
        let long = "x".repeat(LONGEST + 1);
        let mut made = Names::default();
        for name in
            ["x-plugin", "content-type", "X-Plugin", "x-plugin", "x-number", &long, "a b", ""]
        {
            for _ in 0..2 {
                let expected = HeaderName::from_bytes(name.as_bytes()).ok();
                assert_eq!(find(&mut made, name.as_bytes()), expected, "{name}");
            }
        }
        assert!(made.iter().flatten().all(|name| name.as_str().len() <= LONGEST));
        assert_eq!(of(b"x-plugin"), Some(HeaderName::from_static("x-plugin")));
    }
}
