//! What does a log line look like to the host?
//!
//! Hosts read hclog's JSON from a plugin's stderr: one object per line, in which `@level`, `@message`, `@module` and
//! `@timestamp` have a meaning and every other key becomes a pair on the host's own line. They are strict: a time that
//! isn't written with exactly six fractional digits makes the whole line plain debug text, one of the `@` keys that is
//! no string crashes a Go host, and lines over 64 KiB are cut into pieces. So here these keys are always text, and lines
//! are bounded.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::LogSink;

/// No line is longer, newline included. Hosts split at 64 KiB.
pub(crate) const LINE_BYTES_MAX: usize = 60 * 1024;
/// Longest text in one field. JSON makes up to six bytes of one, so the message alone always fits into a line.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// JSON numbers arrive as floats in a Go host; larger integers would be rounded, so they go as text.
const INTEGER_MAX: u64 = 1 << 53;

/// Libraries below us: of their events only warnings are worth a line, whatever level the product asks for.
const QUIET_TARGETS: [&str; 5] = ["h2", "hyper", "hyper_util", "tonic", "tower"];

/// Makes hclog lines of tracing's events and hands them to a [`LogSink`]. The fields of the spans around an event
/// become fields of its line; on equal names the innermost wins.
#[derive(Debug)]
pub(crate) struct HclogLayer {
    sink: LogSink,
}

impl HclogLayer {
    /// A layer that writes to `sink`, as far as the sink's level allows.
    pub(crate) fn new(sink: LogSink) -> HclogLayer {
        HclogLayer { sink }
    }
}

/// What a span adds to the lines of its events.
struct SpanFields(Map<String, Value>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for HclogLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let crate_name = metadata.target().split("::").next().unwrap_or_default();
        if *metadata.level() > Level::WARN && QUIET_TARGETS.contains(&crate_name) {
            return Interest::never();
        }
        Interest::sometimes() // the level can change
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.sink.level()
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(SpanFields(fields.0));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(known) = span.extensions_mut().get_mut::<SpanFields>() {
            known.0.extend(fields.0);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(known) = span.extensions().get::<SpanFields>() {
                fields.0.extend(known.0.clone());
            }
        }
        event.record(&mut fields);
        let message = match fields.0.remove("message") {
            Some(Value::String(message)) => message,
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let head = Head {
            level: *metadata.level(),
            message: &message,
            module: metadata.target(),
        };
        self.sink.write(&line(&head, SystemTime::now(), fields.0));
    }
}

/// The part of a line that hosts understand.
pub(crate) struct Head<'a> {
    pub(crate) level: Level,
    pub(crate) message: &'a str,
    pub(crate) module: &'a str,
}

/// One line, newline included. If it would be too long, the fields are left out and the line says so.
pub(crate) fn line(head: &Head<'_>, time: SystemTime, mut fields: Map<String, Value>) -> Vec<u8> {
    let level = match head.level {
        Level::TRACE => "trace",
        Level::DEBUG => "debug",
        Level::INFO => "info",
        Level::WARN => "warn",
        Level::ERROR => "error",
    };
    let mut text = |key: &str, value: &str| fields.insert(key.to_owned(), Value::from(bounded(value)));
    text("@level", level);
    text("@message", head.message);
    text("@module", head.module);
    text("@timestamp", &timestamp(time));
    let mut line = Value::Object(fields.clone()).to_string();
    if line.len() >= LINE_BYTES_MAX {
        fields.retain(|key, _| key.starts_with('@'));
        fields.insert("fields_left_out".to_owned(), Value::from("line too long"));
        // Only now can a long module name matter; it is ours, and short.
        line = Value::Object(fields).to_string();
    }
    line.push('\n');
    line.into_bytes()
}

/// The beginning of a text, cut at a character.
fn bounded(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_BYTES_MAX)
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0);
    format!("{}…", &text[..end])
}

/// UTC with exactly six fractional digits.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default(); // a clock before 1970 is no reason to fail
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z",
        since.subsec_micros()
    )
}

/// Date of a day since 1970, in years that begin in March: then the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097); // of 400 years
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march_month = (5 * day + 2) / 153;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, day - (153 * march_month + 2) / 5 + 1)
}

/// Values as a host takes them: text or numbers.
#[derive(Default)]
pub(crate) struct Fields(pub(crate) Map<String, Value>);

impl Fields {
    pub(crate) fn put(&mut self, name: &str, value: impl Into<Value>) {
        // A key that begins with @ would be taken for one of hclog's own.
        self.0
            .insert(name.trim_start_matches('@').to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        match serde_json::Number::from_f64(value) {
            Some(number) => self.put(field.name(), number),
            None => self.put(field.name(), value.to_string()), // not a number, or infinite
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if value.unsigned_abs() > INTEGER_MAX {
            return self.put(field.name(), value.to_string());
        }
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if value > INTEGER_MAX {
            return self.put(field.name(), value.to_string());
        }
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), bounded(value));
    }

    /// The whole chain of causes: an error's own text never contains its source.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text += ": ";
            text += &error.to_string();
            cause = error.source();
        }
        self.put(field.name(), bounded(&text));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), bounded(&format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests;
