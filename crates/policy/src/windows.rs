//! Conditions on time: whether one holds at a moment, and when that changes by itself.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use model::UnixMillis;
use model::slice::ConditionKind;

/// A condition, ready to be asked.
#[derive(Clone, Debug)]
pub enum Condition {
    /// See [`ConditionKind::TimeWindow`].
    Window(Window),
    /// See [`ConditionKind::AttestedWithin`].
    AttestedWithin {
        /// In milliseconds.
        millis: i64,
    },
}

/// A window of the week.
#[derive(Clone, Debug)]
pub struct Window {
    days: [bool; 7],
    from_minute: u16,
    to_minute: u16,
    zone: TimeZone,
}

/// Whether a condition holds, and the first moment at which that may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whether it holds.
    pub holds: bool,
    /// Until when that is so.
    pub until: UnixMillis,
}

impl Condition {
    /// Makes a condition ready.
    ///
    /// # Errors
    /// If its time zone is not known here.
    pub fn new(kind: &ConditionKind) -> Result<Self, String> {
        match kind {
            ConditionKind::AttestedWithin { seconds } => {
                Ok(Self::AttestedWithin { millis: i64::from(*seconds) * 1000 })
            }
            ConditionKind::TimeWindow { days, from_minute, to_minute, time_zone } => {
                let zone =
                    TimeZone::get(time_zone).map_err(|_| format!("`{time_zone}` is not a time zone"))?;
                let mut week = [false; 7];
                for day in days {
                    if let Some(slot) = week.get_mut(usize::from(*day)) {
                        *slot = true;
                    }
                }
                Ok(Self::Window(Window {
                    days: week,
                    from_minute: *from_minute,
                    to_minute: *to_minute,
                    zone,
                }))
            }
        }
    }

    /// Asks it. Evidence from the future counts as new: clocks are never exactly right.
    #[must_use]
    pub fn ask(&self, now: UnixMillis, attested_at: UnixMillis) -> Held {
        match self {
            Self::AttestedWithin { millis } => {
                let end = attested_at.plus_millis(*millis);
                let holds = now < end;
                Held { holds, until: if holds { end } else { UnixMillis(i64::MAX) } }
            }
            Self::Window(window) => window.ask(now),
        }
    }
}

impl Window {
    fn ask(&self, now: UnixMillis) -> Held {
        let Ok(today) = Timestamp::from_millisecond(now.0).map(|t| t.to_zoned(self.zone.clone()).date())
        else {
            // A moment that no calendar has is in no window.
            return Held { holds: false, until: UnixMillis(i64::MAX) };
        };
        let mut holds = false;
        let mut until = UnixMillis(i64::MAX);
        // Yesterday's window may still be open; a week ahead there is a next one, if there is any.
        for offset in -1..=8_i64 {
            let Some((start, end)) = self.window_of(today, offset) else { continue };
            holds |= start <= now && now < end;
            for boundary in [start, end] {
                if boundary > now {
                    until = until.min(boundary);
                }
            }
        }
        Held { holds, until }
    }

    fn window_of(&self, today: Date, offset: i64) -> Option<(UnixMillis, UnixMillis)> {
        let day = today.checked_add(jiff::Span::new().days(offset)).ok()?;
        let weekday = usize::try_from(day.weekday().to_monday_zero_offset()).ok()?;
        if !self.days[weekday] {
            return None;
        }
        let end_day = if self.to_minute > self.from_minute { day } else { day.tomorrow().ok()? };
        Some((self.moment(day, self.from_minute)?, self.moment(end_day, self.to_minute)?))
    }

    /// A minute of a day as a moment. One that the clocks skip is the moment after the gap; of one that they repeat,
    /// the first counts.
    fn moment(&self, day: Date, minute: u16) -> Option<UnixMillis> {
        let (day, minute) = if minute == 24 * 60 { (day.tomorrow().ok()?, 0) } else { (day, minute) };
        let time = day.at(i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?, 0, 0);
        let zoned = self.zone.to_ambiguous_zoned(time).compatible().ok()?;
        Some(UnixMillis(zoned.timestamp().as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> UnixMillis {
        UnixMillis(text.parse::<Timestamp>().unwrap().as_millisecond())
    }

    fn window(days: &[u8], from: u16, to: u16) -> Condition {
        Condition::new(&ConditionKind::TimeWindow {
            days: days.to_vec(),
            from_minute: from,
            to_minute: to,
            time_zone: "Europe/Berlin".into(),
        })
        .unwrap()
    }

    #[test]
    fn business_hours_in_their_own_zone() {
        let hours = window(&[0, 1, 2, 3, 4], 8 * 60, 18 * 60);
        let cases = [
            // Tuesday, winter: UTC+1.
            ("2026-11-24T06:59:59Z", false, "2026-11-24T07:00:00Z"),
            ("2026-11-24T07:00:00Z", true, "2026-11-24T17:00:00Z"),
            ("2026-11-24T17:00:00Z", false, "2026-11-25T07:00:00Z"),
            // Friday evening: next is Monday.
            ("2026-11-27T20:00:00Z", false, "2026-11-30T07:00:00Z"),
            // Summer: UTC+2.
            ("2026-07-07T06:00:00Z", true, "2026-07-07T16:00:00Z"),
        ];
        for (now, holds, until) in cases {
            assert_eq!(hours.ask(at(now), UnixMillis(0)), Held { holds, until: at(until) }, "{now}");
        }
    }

    #[test]
    fn past_midnight_and_over_a_change_of_clocks() {
        let night = window(&[6], 22 * 60, 6 * 60);
        // Sunday 22:00 to Monday 06:00.
        assert!(night.ask(at("2026-11-29T23:00:00Z"), UnixMillis(0)).holds);
        assert!(night.ask(at("2026-11-30T04:59:59Z"), UnixMillis(0)).holds);
        assert!(!night.ask(at("2026-11-30T05:00:00Z"), UnixMillis(0)).holds);
        // 2027-03-28, 02:00 to 03:00 does not exist in Berlin.
        let skipped = window(&[6], 2 * 60 + 30, 4 * 60);
        let held = skipped.ask(at("2027-03-28T00:59:00Z"), UnixMillis(0));
        assert_eq!(held, Held { holds: false, until: at("2027-03-28T01:30:00Z") });
    }

    #[test]
    fn evidence_ages() {
        let fresh = Condition::new(&ConditionKind::AttestedWithin { seconds: 60 }).unwrap();
        let ask = |now| fresh.ask(UnixMillis(now), UnixMillis(1_000));
        assert_eq!(ask(60_999), Held { holds: true, until: UnixMillis(61_000) });
        assert!(!ask(61_000).holds);
        assert!(ask(0).holds);
    }

    #[test]
    fn an_unknown_zone_is_refused() {
        let kind = ConditionKind::TimeWindow {
            days: vec![0],
            from_minute: 0,
            to_minute: 60,
            time_zone: "Mars/Olympus".into(),
        };
        assert!(Condition::new(&kind).is_err());
    }
}
