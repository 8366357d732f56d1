use serde_json::{Map, Value, json};

use super::*;

fn masker(fields: &[&str]) -> Masker {
    let fields: Vec<_> = fields.iter().map(ToString::to_string).collect();
    Masker::new(Rc::new(Fields::new(&fields).unwrap()), Rc::from(&b"\"***\""[..]))
}

/// Masks in portions of `size` bytes. Gives what came out, also when it went wrong.
fn mask(fields: &[&str], text: &[u8], size: usize) -> (String, Result<(), Malformed>) {
    let (mut masker, mut out) = (masker(fields), Vec::new());
    let read = text.chunks(size).try_for_each(|portion| masker.read(portion, &mut out));
    let read = read.and_then(|()| masker.finish());
    (String::from_utf8(out).unwrap(), read)
}

#[test]
fn values_go_and_all_else_stays_as_it_is() {
    let cases = [
        (r#"{"email":"a@b"}"#, r#"{"email":"***"}"#),
        (r#" { "email" : "a@b" , "n": 1.50 } "#, r#" { "email" : "***" , "n": 1.50 } "#),
        (
            r#"[{"email":1},{"email":null},{"email":[1,{"email":2}]},{"email":{"a":"b"}}]"#,
            r#"[{"email":"***"},{"email":"***"},{"email":"***"},{"email":"***"}]"#,
        ),
        (r#"{"email":"first","email":"second"}"#, r#"{"email":"***","email":"***"}"#),
        (r#"{"\u0065mail":"a@b"}"#, r#"{"\u0065mail":"***"}"#),
        (r#"{"email":"quote \" brace } \\"}"#, r#"{"email":"***"}"#),
        (r#"{"a":"email","b":["email","x"]}"#, r#"{"a":"email","b":["email","x"]}"#),
        (
            r#"{"card":{"number":"4","kind":"v"},"number":5}"#,
            r#"{"card":{"number":"***","kind":"v"},"number":5}"#,
        ),
        (r#"{"card":[{"number":4}]}"#, r#"{"card":[{"number":"***"}]}"#),
        ("{}", "{}"),
        ("[]", "[]"),
        ("12", "12"),
        ("\"email\"", "\"email\""),
        ("", ""),
    ];
    for (text, expected) in cases {
        for size in [1, 2, 3, 7, 1000] {
            let found = mask(&["email", "card.number"], text.as_bytes(), size);
            assert_eq!(found, (expected.to_owned(), Ok(())), "{text} in portions of {size}");
        }
    }
}

#[test]
fn what_is_not_json_goes_no_further() {
    let secret = "TOP";
    let cases = [
        r#"{email:"TOP"}"#,
        r#"{'email':"TOP"}"#,
        r#"{/**/"email":"TOP"}"#,
        r#"{"a":1 "email":"TOP"}"#,
        r#"{} {"email":"TOP"}"#,
        r#"{"a":{]"email":"TOP"}"#,
        "{\"a\":\"\n\",\"b\":\"TOP\"}",
        r#"{"a":"\x","b":"TOP"}"#,
        r#"{"a":"\u12","b":"TOP"}"#,
        "\u{feff}{\"b\":\"TOP\"}",
        "<html>TOP</html>",
        r#"{,"b":"TOP"}"#,
        r#"{"a":,"b":"TOP"}"#,
        r#"["a",]"TOP""#,
    ];
    for text in cases {
        let (out, result) = mask(&["email"], text.as_bytes(), 4);
        assert!(matches!(result, Err(Malformed::Byte(_))), "{text}: {result:?}");
        assert!(!out.contains(secret), "{text}: {out}");
    }
    for text in ["{", "[1", "\"a", r#"{"email""#, r#"{"email":"x"#] {
        assert_eq!(mask(&["email"], text.as_bytes(), 4).1, Err(Malformed::Incomplete), "{text}");
    }
    assert_eq!(mask(&["a"], "[".repeat(DEPTH).as_bytes(), 64).1, Err(Malformed::Incomplete));
    assert_eq!(mask(&["a"], "[".repeat(DEPTH + 1).as_bytes(), 64).1, Err(Malformed::TooDeep));
}

/// Random documents: what comes out is what a parser makes of them, masked in the tree.
#[test]
fn agrees_with_a_parser_on_random_documents() {
    let mut random = Random(1);
    for round in 0..3_000 {
        let value = random.value(4);
        let text = if round % 2 == 0 { value.to_string() } else { format!("{value:#}") };
        let size = 1 + random.below(9);
        let (out, result) = mask(&["a", "b.c"], text.as_bytes(), size);
        assert_eq!(result, Ok(()), "{text}");
        let expected = mask_tree(value, &mut Vec::new());
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), expected, "{text}");
    }
}

fn mask_tree(value: Value, path: &mut Vec<String>) -> Value {
    match value {
        Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| mask_tree(item, path)).collect())
        }
        Value::Object(members) => {
            let member = |(name, value): (String, Value)| {
                path.push(name.clone());
                let masked = name == "a" || path.ends_with(&["b".to_owned(), "c".to_owned()]);
                let value = if masked { json!("***") } else { mask_tree(value, path) };
                path.pop();
                (name, value)
            };
            Value::Object(members.into_iter().map(member).collect::<Map<_, _>>())
        }
        other => other,
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 4 } else { 8 }) {
            0 => Value::Null,
            1 => json!(self.below(1000) as f64 / 8.0),
            2 => json!(["", "a", "\"", "\\", "}", "é\u{1f600}", "\n\u{1}"][self.below(7)]),
            3 => json!(self.below(2) == 0),
            4 | 5 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => {
                let name = |random: &mut Self| ["a", "b", "c", "é", "a\"", ""][random.below(6)];
                let members =
                    (0..self.below(5)).map(|_| (name(self).to_owned(), self.value(depth - 1)));
                Value::Object(members.collect::<Map<_, _>>())
            }
        }
    }
}
