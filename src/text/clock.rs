//! The date as chat templates ask for it.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// Seconds of Unix time.
pub(super) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// `seconds` of Unix time, in UTC and English, by C's `strftime` rules for dates and times.
///
/// Directives that templates have no use for stay as they are.
pub(super) fn strftime(format: &str, seconds: i64) -> String {
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (
        MONTHS.get(month - 1).copied().unwrap_or_default(),
        DAYS.get(days.rem_euclid(7) as usize)
            .copied()
            .unwrap_or_default(),
    );
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(&match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year.rem_euclid(100)),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name.chars().take(3).collect(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name.chars().take(3).collect(),
            Some('H') => format!("{:02}", time / 3600),
            Some('M') => format!("{:02}", time / 60 % 60),
            Some('S') => format!("{:02}", time % 60),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        });
    }
    out
}

/// Year, month from 1 and day from 1 of a day counted from 1970-01-01.
fn civil(days: i64) -> (i64, usize, i64) {
    // Counting from 1 March of the year 0 puts the leap day last, where it disturbs nothing.
    let days = days.clamp(-400_000_000, 400_000_000) + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    (year, month as usize, day)
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
