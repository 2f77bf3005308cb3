//! Amounts of a resource: `100m`, `1.5Gi`, `2e3`.
//!
//! A quantity is a whole number of billionths with the notation it came in. It is never a floating point number, and
//! what is finer than a billionth is rounded away from zero. Its text is canonical: as few digits as the notation
//! allows, without a fraction.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde_json::Value;

const NANO: i128 = 1_000_000_000;
/// No amount exceeds 2^63-1 units: larger ones are cut to it.
const LIMIT: i128 = i64::MAX as i128 * NANO;

/// Which family of suffixes an amount is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notation {
    /// `Ki`, `Mi`, `Gi`: powers of 1024.
    Binary,
    /// `m`, `k`, `M`, `G`: powers of 1000.
    #[default]
    Decimal,
    /// `e3`, `e6`.
    Exponent,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    notation: Notation,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity: a number with an optional suffix such as m, k, M, Mi or Gi is expected")]
pub struct ParseError(pub String);

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, notation: Notation::Decimal };

    /// Thousandths, such as milli-CPUs.
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), notation: Notation::Decimal }.capped()
    }

    /// Whole units.
    pub fn from_units(units: i64, notation: Notation) -> Self {
        Self { nanos: i128::from(units) * NANO, notation }.capped()
    }

    /// Bytes, printed with `Ki`, `Mi`, `Gi`.
    pub fn from_bytes(bytes: i64) -> Self {
        Self::from_units(bytes, Notation::Binary)
    }

    /// Thousandths, rounded up.
    pub fn milli(self) -> i64 {
        round_up(self.nanos, NANO / 1000)
    }

    /// Whole units, rounded up.
    pub fn units(self) -> i64 {
        round_up(self.nanos, NANO)
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether there is a fraction of a unit.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    fn capped(self) -> Self {
        Self { nanos: self.nanos.clamp(-LIMIT, LIMIT), ..self }
    }

    /// The notation of the first summand stays, unless that is zero.
    fn notation_with(self, other: Self) -> Notation {
        if self.is_zero() { other.notation } else { self.notation }
    }

    /// The quantity in a field: a text, or a bare number as YAML writers like to leave it.
    pub fn from_value(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::String(text) => text.parse(),
            other => other.to_string().parse(),
        }
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { nanos: self.nanos + other.nanos, notation: self.notation_with(other) }.capped()
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { nanos: self.nanos - other.nanos, notation: self.notation_with(other) }.capped()
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, |sum, each| sum + each)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Replaces a field's quantity by its canonical text.
pub fn canonicalize(value: &mut Value) -> Result<(), ParseError> {
    let text = Quantity::from_value(value)?.to_string();
    *value = Value::String(text);
    Ok(())
}

/// Milli-units of a typed quantity; zero when it cannot be read (validation has seen to that).
pub fn milli(quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> i64 {
    quantity.0.parse::<Quantity>().unwrap_or_default().milli()
}

/// Whole units (bytes) of a typed quantity; zero when it cannot be read.
pub fn units(quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> i64 {
    quantity.0.parse::<Quantity>().unwrap_or_default().units()
}

/// How many times `divisor`, or one where that is no positive number, goes into a typed quantity; rounded up.
pub fn divided(
    quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity,
    divisor: &k8s_openapi::apimachinery::pkg::api::resource::Quantity,
) -> i64 {
    let nanos =
        |q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| q.0.parse::<Quantity>().unwrap_or_default().nanos;
    let by = Some(nanos(divisor)).filter(|by| *by > 0).unwrap_or(NANO);
    round_up(nanos(quantity), by)
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError(text.to_owned());
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(wrong());
        }
        let (scale, notation) = Scale::of(suffix).ok_or_else(wrong)?;
        let nanos = scale.nanos(whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        Ok(Self { nanos: if negative { -nanos } else { nanos }, notation }.capped())
    }
}

enum Scale {
    /// 1024 to this power.
    Binary(u32),
    /// 10 to this power.
    Decimal(i32),
}

impl Scale {
    fn of(suffix: &str) -> Option<(Self, Notation)> {
        let decimal = |power| Some((Self::Decimal(power), Notation::Decimal));
        let binary = |power| Some((Self::Binary(power), Notation::Binary));
        match suffix {
            "" => decimal(0),
            "n" => decimal(-9),
            "u" => decimal(-6),
            "m" => decimal(-3),
            "k" => decimal(3),
            "M" => decimal(6),
            "G" => decimal(9),
            "T" => decimal(12),
            "P" => decimal(15),
            "E" => decimal(18),
            "Ki" => binary(1),
            "Mi" => binary(2),
            "Gi" => binary(3),
            "Ti" => binary(4),
            "Pi" => binary(5),
            "Ei" => binary(6),
            _ => {
                let power = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
                Some((Self::Decimal(power), Notation::Exponent))
            }
        }
    }

    /// The amount in billionths, at most [`LIMIT`]. The digits come without zeros at their outer ends.
    fn nanos(&self, whole: &str, fraction: &str) -> i128 {
        // Digits past these are worth less than a billionth of a unit even of the largest suffix that fits.
        const FRACTION_DIGITS: usize = 18;
        const WHOLE_DIGITS: usize = 19;
        if whole.len() > WHOLE_DIGITS {
            return LIMIT;
        }
        let lost = fraction.len() > FRACTION_DIGITS;
        let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
        let places = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
        let number = |digits: &str| digits.parse::<i128>().unwrap_or_default();
        let nanos = match *self {
            Self::Decimal(power) => {
                shift(number(&format!("0{whole}{fraction}")), power.saturating_add(9).saturating_sub(places))
            }
            Self::Binary(power) => {
                let unit = 1024_i128.pow(power);
                let whole = number(whole).checked_mul(unit * NANO).unwrap_or(LIMIT);
                whole.saturating_add(shift(number(fraction) * unit, 9 - places))
            }
        };
        nanos.saturating_add(i128::from(lost)).min(LIMIT)
    }
}

/// `value` times ten to `power`, rounded up, at most [`LIMIT`].
fn shift(value: i128, power: i32) -> i128 {
    if value == 0 {
        return 0;
    }
    let factor = 10_i128.checked_pow(power.unsigned_abs());
    if power >= 0 {
        return factor.and_then(|factor| value.checked_mul(factor)).unwrap_or(LIMIT).min(LIMIT);
    }
    factor.map_or(1, |factor| div_up(value, factor))
}

/// Division that rounds away from zero.
fn div_up(value: i128, by: i128) -> i128 {
    let rest = value % by;
    value / by + if rest == 0 { 0 } else { value.signum() }
}

fn round_up(nanos: i128, unit: i128) -> i64 {
    let value = div_up(nanos, unit);
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Below 1024 a binary suffix never fits.
        let small = self.nanos.abs() < 1024 * NANO;
        match self.notation {
            Notation::Binary if !small => {
                let (number, power) = reduce(div_up(self.nanos, NANO), 1024, 6);
                write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power])
            }
            Notation::Binary | Notation::Decimal => {
                let (number, power) = reduce(self.nanos, 1000, 9);
                let power = if number == 0 { 3 } else { power };
                write!(f, "{number}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][power])
            }
            Notation::Exponent => {
                let (number, power) = reduce(self.nanos, 1000, 9);
                match power {
                    _ if number == 0 => f.write_str("0"),
                    3 => write!(f, "{number}"),
                    power => write!(f, "{number}e{}", (i64::try_from(power).unwrap_or_default() - 3) * 3),
                }
            }
        }
    }
}

/// Takes out as many factors of `base` as there are, up to `most`.
fn reduce(mut number: i128, base: i128, most: usize) -> (i128, usize) {
    let mut power = 0;
    while power < most && number != 0 && number % base == 0 {
        number /= base;
        power += 1;
    }
    (number, power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_quantity_is_divided_and_rounded_up() {
        use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;
        let table = [("1500m", "1", 2), ("64Mi", "1Mi", 64), ("250m", "1m", 250), ("3", "0", 3), ("nonsense", "1", 0)];
        for (quantity, divisor, times) in table {
            let got = divided(&Typed(quantity.to_owned()), &Typed(divisor.to_owned()));
            assert_eq!(got, times, "{quantity} / {divisor}");
        }
    }

    #[test]
    fn text_becomes_canonical() {
        let table = [
            ("0", "0"),
            ("0Mi", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1.5", "1500m"),
            ("1000m", "1"),
            ("100m", "100m"),
            ("0.1m", "100u"),
            ("0.0000000001", "1n"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("100000", "100k"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("0.5Ki", "512"),
            ("1.5Ki", "1536"),
            ("100Mi", "100Mi"),
            ("2e3", "2e3"),
            ("2E3", "2e3"),
            ("12e-1", "1200e-3"),
            ("1E", "1E"),
            ("-1", "-1"),
            ("-0.5", "-500m"),
            ("+3", "3"),
            ("16Ei", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
        ];
        for (given, canonical) in table {
            assert_eq!(parse(given).to_string(), canonical, "{given}");
            assert_eq!(parse(canonical), parse(given), "{given} keeps its value");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", ".", "-", "Mi", "1 Mi", "1mi", "1KiB", "0x10", "1.2.3", "1e", "1e1.5", "one", "1,5"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_round_up() {
        let table = [("1500m", 1500, 2), ("1", 1000, 1), ("1n", 1, 1), ("1Ki", 1_024_000, 1024), ("-1500m", -1500, -2)];
        for (text, milli, units) in table {
            assert_eq!((parse(text).milli(), parse(text).units()), (milli, units), "{text}");
        }
    }

    #[test]
    fn sums_and_order() {
        assert_eq!((parse("1500m") + parse("0.5")).to_string(), "2");
        assert_eq!((parse("1Gi") - parse("512Mi")).to_string(), "512Mi");
        assert_eq!((Quantity::ZERO + parse("1Ki")).to_string(), "1Ki");
        assert!(parse("1Gi") > parse("1G"));
        assert_eq!(parse("1"), parse("1000m"));
        assert_eq!(["1", "2"].map(parse).into_iter().sum::<Quantity>(), parse("3"));
        assert_eq!(Quantity::from_milli(1500).to_string(), "1500m");
        assert_eq!(Quantity::from_bytes(1 << 30).to_string(), "1Gi");
    }

    #[test]
    fn fields_may_hold_bare_numbers() {
        for (mut value, text) in [(Value::from(2), "2"), (Value::from(0.5), "500m"), (Value::from("1024Ki"), "1Mi")] {
            canonicalize(&mut value).expect("a quantity");
            assert_eq!(value, text);
        }
        assert!(canonicalize(&mut Value::Bool(true)).is_err());
    }
}
