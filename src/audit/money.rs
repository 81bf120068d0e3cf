//! What bytes and requests cost a month.

use serde::Serialize;

use crate::error::{Code, Error, Result};

/// What an object store charges.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Prices {
    /// Of a gigabyte (10⁹ bytes) for a month, in USD.
    pub gb_month: f64,
    /// Of a thousand requests, in USD.
    pub thousand_requests: f64,
    /// Requests a month.
    pub requests: u64,
}

impl Default for Prices {
    /// 0.023 USD for a gigabyte and month, the list price of common object stores; no requests.
    fn default() -> Self {
        Self {
            gb_month: 0.023,
            thousand_requests: 0.0,
            requests: 0,
        }
    }
}

/// A bill for a month, in USD.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Bill {
    /// For the bytes.
    pub storage: f64,
    /// For the requests.
    pub requests: f64,
    /// For both.
    pub total: f64,
}

impl Prices {
    /// Checks that both prices are numbers of money.
    ///
    /// # Errors
    /// [`Code::Usage`]: negative or not finite.
    pub fn check(&self) -> Result<()> {
        for (name, price) in [
            ("GB", self.gb_month),
            ("1000 requests", self.thousand_requests),
        ] {
            if !price.is_finite() || price < 0.0 {
                let message = format!("a price of {price} for {name}");
                return Err(Error::new(Code::Usage, message));
            }
        }
        Ok(())
    }

    /// USD a month for so many bytes.
    pub fn storage(&self, bytes: u64) -> f64 {
        bytes as f64 / 1e9 * self.gb_month
    }

    /// The bill for so many bytes and the requests.
    pub fn bill(&self, bytes: u64) -> Bill {
        let storage = self.storage(bytes);
        let requests = self.requests as f64 / 1e3 * self.thousand_requests;
        Bill {
            storage,
            requests,
            total: storage + requests,
        }
    }
}

/// Money as people read it, in USD: cents from a dollar on, three digits below.
pub fn usd(amount: f64) -> String {
    match amount.abs() {
        0.0 => "0".to_owned(),
        a if a < 1e-6 => format!("{amount:.2e}"),
        a if a < 1.0 => {
            let places = (2 - a.log10().floor() as i32).clamp(2, 9) as usize;
            format!("{amount:.places$}")
        }
        _ => format!("{amount:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a gigabyte becomes a gibibyte, or requests are billed one by one.
    #[test]
    fn a_bill_is_bytes_and_requests() {
        let prices = Prices {
            gb_month: 0.023,
            thousand_requests: 0.005,
            requests: 2_000_000,
        };
        let bill = prices.bill(1_000_000_000_000);
        assert!((bill.storage - 23.0).abs() < 1e-9, "{bill:?}");
        assert!((bill.requests - 10.0).abs() < 1e-9, "{bill:?}");
        assert_eq!(bill.total, bill.storage + bill.requests);
        assert!(
            Prices {
                gb_month: f64::NAN,
                ..prices
            }
            .check()
            .is_err()
        );
        assert!(
            Prices {
                thousand_requests: -1.0,
                ..prices
            }
            .check()
            .is_err()
        );
    }

    /// Breaks where small sums vanish or large ones grow digits.
    #[test]
    fn money_is_printed_with_three_digits_or_cents() {
        for (amount, text) in [
            (0.0, "0"),
            (1234.567, "1234.57"),
            (0.5, "0.500"),
            (0.0123456, "0.0123"),
            (0.0000012345, "0.00000123"),
            (1.5e-8, "1.50e-8"),
        ] {
            assert_eq!(usd(amount), text);
        }
    }
}
