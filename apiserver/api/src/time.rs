//! Times as the API writes them, and ages as `kubectl` prints them.

use jiff::{Timestamp, tz::TimeZone};

/// `2026-01-02T03:04:05Z`: the form of `metav1.Time`.
pub fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default()
}

/// `2026-01-02T03:04:05.000006Z`: the form of `metav1.MicroTime`.
pub fn rfc3339_micro(micros: i64) -> String {
    match Timestamp::from_microsecond(micros) {
        Ok(time) => time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        Err(_) => String::new(),
    }
}

/// Seconds since the epoch; `None` when the text is no RFC 3339 time.
pub fn parse(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// A duration with two or three significant digits, such as `3d4h`.
pub fn human_duration(seconds: i64) -> String {
    let two = |value: i64, unit: &str, rest: i64, rest_unit: &str| match rest {
        0 => format!("{value}{unit}"),
        rest => format!("{value}{unit}{rest}{rest_unit}"),
    };
    match seconds {
        i64::MIN..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

/// How long ago an RFC 3339 time was; `<unknown>` when it is unset.
pub fn age(time: &str, now: i64) -> String {
    parse(time).map_or_else(|| "<unknown>".to_owned(), |then| human_duration(now - then))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_kubectl() {
        let table = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (312, "5m12s"),
            (600, "10m"),
            (3 * HOUR - 1, "179m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + 61, "3h1m"),
            (47 * HOUR + 59 * MINUTE, "47h"),
            (3 * DAY + 4 * HOUR, "3d4h"),
            (7 * DAY, "7d"),
            (100 * DAY, "100d"),
            (2 * YEAR, "2y"),
            (3 * YEAR + 5 * DAY, "3y5d"),
            (9 * YEAR + 5 * DAY, "9y"),
        ];
        for (seconds, shown) in table {
            assert_eq!(human_duration(seconds), shown, "{seconds}");
        }
    }

    #[test]
    fn times_round_trip() {
        assert_eq!(rfc3339(1_767_323_045), "2026-01-02T03:04:05Z");
        assert_eq!(rfc3339_micro(1_767_323_045_000_006), "2026-01-02T03:04:05.000006Z");
        assert_eq!(parse("2026-01-02T03:04:05Z"), Some(1_767_323_045));
        assert_eq!(parse("2026-01-02T05:04:05.7+02:00"), Some(1_767_323_045));
        assert_eq!(age("", 5), "<unknown>");
        assert_eq!(age("2026-01-02T03:04:05Z", 1_767_323_050), "5s");
    }
}
