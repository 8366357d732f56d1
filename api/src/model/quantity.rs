//! Numbers of bytes as Kubernetes writes them: `64Mi`, `1Gi`, `500M`, `1048576`.

const UNITS: [(&str, u64); 6] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
];

/// Reads whole numbers with or without a unit.
///
/// # Errors
/// Says what a number of bytes looks like.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (digits, factor) =
        unit.map_or((text, 1), |(unit, factor)| (text.strip_suffix(unit).unwrap_or(text), *factor));
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok());
    let bytes = number.flatten().and_then(|number: u64| number.checked_mul(factor));
    bytes.ok_or_else(|| {
        format!("`{}` is not a number of bytes; write `64Mi` or `1Gi`", text.escape_debug())
    })
}

/// As [`parse`] reads it, in the largest unit of 1024 that leaves nothing over: `64Mi`, `1536Ki`, `1000`.
pub(crate) fn format(bytes: u64) -> String {
    let units = [("Gi", 1_u64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let unit = units.iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_whole_numbers_with_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("64Mi", 64 << 20),
            ("1Gi", 1 << 30),
            ("3Ki", 3072),
            ("5k", 5000),
            ("500M", 500_000_000),
            ("2G", 2_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "Mi",
            "-1",
            "+1",
            "1.5Mi",
            "1 Mi",
            "1mi",
            "1Ti",
            "99999999999999999999",
            "18446744073709551615Ki",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
    #[test]
    fn writes_what_it_reads() {
        for text in ["0", "1", "1000", "1Ki", "1536Ki", "64Mi", "1025Mi", "64Gi"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
        assert_eq!(format(1 << 20), "1Mi");
    }
}
