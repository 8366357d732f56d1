//! Gateway API durations (GEP-2257): `1h30m`, `500ms`, `0s`.

use std::time::Duration;

/// Reads one to four numbers of at most five digits, each with `h`, `m`, `s` or `ms`.
///
/// # Errors
/// Says what a duration looks like.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "`{text}` is not a duration; write up to four parts such as `1h30m`, `10s`, `500ms`"
        )
    };
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let unit_length = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = &rest[digits..digits + unit_length];
        if digits > 5 || parts == 4 {
            return Err(wrong());
        }
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(wrong()),
        };
        rest = &rest[digits + unit_length..];
        parts += 1;
    }
    if parts == 0 { Err(wrong()) } else { Ok(total) }
}

/// As [`parse`] reads it, to the millisecond: `1h30m`, `500ms`, `0s`.
pub fn format(duration: Duration) -> String {
    let millis = duration.as_millis();
    let parts = [
        (millis / 3_600_000, "h"),
        (millis / 60_000 % 60, "m"),
        (millis / 1000 % 60, "s"),
        (millis % 1000, "ms"),
    ];
    let parts: String = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if parts.is_empty() { "0s".to_owned() } else { parts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_it_reads() {
        for text in ["0s", "1ms", "500ms", "10s", "1h30m", "1h2m3s4ms", "24h"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
        assert_eq!(format(Duration::from_micros(1)), "0s");
    }

    #[test]
    fn reads_what_gep_2257_allows() {
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        assert_eq!(parse("1h2m3s4ms"), Ok(Duration::from_millis(3_723_004)));
        for bad in ["", "1", "s", "1.5s", "-1s", "1 s", "123456s", "1d", "1s2s3s4s5s", "1µs"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
