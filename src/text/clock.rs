//! The date as chat templates ask for it.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, Utc};

/// Seconds of Unix time.
pub(super) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// `seconds` of Unix time, in UTC and English, by C's `strftime` rules for dates and times.
///
/// Directives that templates have no use for stay as they are.
pub(super) fn strftime(format: &str, seconds: i64) -> String {
    let latest = DateTime::<Utc>::MAX_UTC;
    let time = DateTime::from_timestamp(seconds, 0).unwrap_or(latest);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(&match chars.next() {
            // Without the sign that a year past 9999 has there.
            Some('Y') => time.year().to_string(),
            Some('y') => format!("{:02}", time.year().rem_euclid(100)),
            Some(known @ ('m' | 'd' | 'B' | 'b' | 'A' | 'a' | 'H' | 'M' | 'S')) => {
                time.format(&format!("%{known}")).to_string()
            }
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 Thu 00:00:00"),
            (951_782_400, "2000-02-29 Tue 00:00:00"),
            (1_721_951_999, "2024-07-25 Thu 23:59:59"),
            (4_107_542_400, "2100-03-01 Mon 00:00:00"),
            (-1, "1969-12-31 Wed 23:59:59"),
        ] {
            assert_eq!(strftime("%Y-%m-%d %a %H:%M:%S", seconds), expected);
        }
        assert_eq!(
            strftime("%A, %d %B %y%% %q%", 0),
            "Thursday, 01 January 70% %q%"
        );
        strftime("%Y", i64::MAX);
    }
}
