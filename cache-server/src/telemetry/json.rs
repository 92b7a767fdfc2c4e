//! Events as JSON objects, one per line: time, level, the event's fields and its target. tracing-subscriber's own form costs
//! several times as much (see ARCHITECTURE.md, "Where the time goes").

use std::fmt::{self, Debug, Write as _};

use jiff::Timestamp;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// The form of lines.
pub(super) struct Json;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for Json {
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        write!(line, "{{\"timestamp\":\"{:.6}\",\"level\":\"{}\"", Timestamp::now(), metadata.level())?;
        let mut fields = Fields { line: &mut line, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        line.write_str(",\"target\":")?;
        quoted(&mut line, metadata.target())?;
        line.write_str("}\n")
    }
}

struct Fields<'a, 'w> {
    line: &'a mut Writer<'w>,
    result: fmt::Result,
}

impl Fields<'_, '_> {
    fn field(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        // Names are identifiers and dots.
        let name = field.name();
        self.result = self.result.and_then(|()| {
            self.line.write_str(",\"")?;
            self.line.write_str(name.strip_prefix("r#").unwrap_or(name))?;
            self.line.write_str("\":")?;
            value(self.line)
        });
    }
}

impl Visit for Fields<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, |line| quoted(line, value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities.
        self.field(
            field,
            |line| if value.is_finite() { write!(line, "{value}") } else { quoted(line, &value.to_string()) },
        );
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.field(field, |line| quoted_parts(line, format_args!("{value}")));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.field(field, |line| quoted_parts(line, format_args!("{value:?}")));
    }
}

fn quoted(line: &mut Writer<'_>, text: &str) -> fmt::Result {
    line.write_char('"')?;
    Escaping(line).write_str(text)?;
    line.write_char('"')
}

fn quoted_parts(line: &mut Writer<'_>, text: fmt::Arguments<'_>) -> fmt::Result {
    line.write_char('"')?;
    Escaping(line).write_fmt(text)?;
    line.write_char('"')
}

/// Passes text on as the inside of a JSON string.
struct Escaping<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|char: char| matches!(char, '"' | '\\' | '\0'..='\x1f')) {
            self.0.write_str(&rest[..at])?;
            // All of these are one byte long.
            match rest.as_bytes()[at] {
                b'\n' => self.0.write_str("\\n")?,
                byte @ (b'"' | b'\\') => write!(self.0, "\\{}", char::from(byte))?,
                byte => write!(self.0, "\\u{byte:04x}")?,
            }
            rest = &rest[at + 1..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::{Arc, Mutex, PoisonError};

    use serde_json::Value;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Out {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Out {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn a_line_is_one_json_object_with_every_field_whatever_is_in_it() {
        let out = Out::default();
        let log = tracing_subscriber::fmt().with_writer(out.clone()).event_format(Json).finish();
        let odd = "a \"quoted\" \\ line\nand \u{1}, ü, \u{7f}";
        let error = std::io::Error::other(odd);
        tracing::subscriber::with_default(log, || {
            tracing::warn!(
                target: "request",
                { http.path = odd, shown = %odd, debugged = ?odd, error = &error as &dyn std::error::Error, size = 7_u64,
                  below = -7, is = true, share = 0.5, none = None::<&str>, r#type = "x" },
                "said {odd}"
            );
        });
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let said: Value = serde_json::from_str(&text).unwrap();
        for (field, expected) in [
            ("http.path", odd.into()),
            ("shown", odd.into()),
            ("debugged", format!("{odd:?}").into()),
            ("error", odd.into()),
            ("size", 7.into()),
            ("below", (-7).into()),
            ("is", true.into()),
            ("share", 0.5.into()),
            ("none", Value::Null),
            ("type", "x".into()),
            ("message", format!("said {odd}").into()),
            ("level", "WARN".into()),
            ("target", "request".into()),
        ] {
            assert_eq!(said[field], expected, "{field}");
        }
        let time: Timestamp = said["timestamp"].as_str().unwrap().parse().unwrap();
        assert!(time.duration_until(Timestamp::now()).as_secs() < 60);
    }
}
