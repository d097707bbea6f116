-- Who is signed in on the billing page and the console. Only hashes are kept: what is read here opens nothing.

CREATE TABLE sign_in_links (
    hash        bytea       PRIMARY KEY CHECK (length(hash) = 32),
    user_id     text COLLATE "C" NOT NULL REFERENCES users (id),
    expires_at  timestamptz NOT NULL
);
CREATE INDEX sign_in_links_user ON sign_in_links (user_id, expires_at);
CREATE INDEX sign_in_links_expires ON sign_in_links (expires_at);

-- Without a user it is the operator's.
CREATE TABLE page_sessions (
    hash        bytea       PRIMARY KEY CHECK (length(hash) = 32),
    user_id     text COLLATE "C" REFERENCES users (id),
    expires_at  timestamptz NOT NULL
);
CREATE INDEX page_sessions_user ON page_sessions (user_id, expires_at);
CREATE INDEX page_sessions_expires ON page_sessions (expires_at);

-- An operator looks for users by the beginning of their address.
CREATE INDEX users_email_lower ON users (lower(email) COLLATE "C") WHERE email IS NOT NULL;
