-- Records of both ledgers are here now: those of a day may be many, of which the open ones are few.
CREATE INDEX ledger_records_open ON ledger_records (user_id) WHERE held = 1;
