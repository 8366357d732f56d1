//! A head as it went on, for plugins that ask later. Few do, and whoever could is all that is known: so keeping one has to be
//! cheap, and looking into it need not be. Pure.

/// Room for most heads, so that it is found once.
const USUAL: usize = 1024;
/// The lengths before each field.
const LENGTHS: usize = 8;

/// Names in lower case and values, pseudo headers first.
#[derive(Debug)]
pub(super) struct Kept {
    /// Each: both lengths as `u32`, the name, the value.
    fields: Vec<u8>,
}

impl Kept {
    /// Of what `visit` calls its argument with.
    pub(super) fn of(visit: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]))) -> Self {
        let mut fields = Vec::with_capacity(USUAL);
        visit(&mut |name, value| {
            let lengths = [name, value].map(|text| u32::try_from(text.len()));
            // No head that was read is so long.
            let [Ok(name_length), Ok(value_length)] = lengths else { return };
            fields.reserve(LENGTHS + name.len() + value.len());
            let lengths = u64::from(name_length) | u64::from(value_length) << 32;
            fields.extend_from_slice(&lengths.to_le_bytes());
            fields.extend_from_slice(name);
            fields.extend_from_slice(value);
        });
        Self { fields }
    }

    /// The first value of a field.
    pub(super) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    pub(super) fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        self.iter().for_each(|(name, value)| visit(name, value));
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &*self.fields;
        std::iter::from_fn(move || {
            let (lengths, after) = rest.split_first_chunk::<LENGTHS>()?;
            let [a, b, c, d, e, f, g, h] = *lengths;
            let (name, after) = after.split_at_checked(u32::from_le_bytes([a, b, c, d]) as usize)?;
            let (value, after) =
                after.split_at_checked(u32::from_le_bytes([e, f, g, h]) as usize)?;
            rest = after;
            Some((name, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_in_its_order() {
        let long = vec![b'x'; 3 * USUAL];
        let fields: [(&[u8], &[u8]); 4] =
            [(b":path", b"/a"), (b"x", b""), (b"x", b"2"), (b"y", &long)];
        let kept = Kept::of(|visit| fields.iter().for_each(|(name, value)| visit(name, value)));
        let mut found = Vec::new();
        kept.visit(&mut |name, value| found.push((name.to_vec(), value.to_vec())));
        assert_eq!(found, fields.map(|(name, value)| (name.to_vec(), value.to_vec())));
        assert_eq!(kept.get(b":path"), Some(&b"/a"[..]));
        assert_eq!(
            (kept.get(b"x"), kept.get(b"y"), kept.get(b"z")),
            (Some(&b""[..]), Some(&*long), None)
        );
        assert!(Kept::of(|_| ()).get(b"").is_none());
    }
}
