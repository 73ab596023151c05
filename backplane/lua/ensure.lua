-- The position of a session's log now; begins the session if there is none.
-- KEYS: session base.  ARGV: epoch for a new session, ttl (ms).  Returns {epoch, head}.
local epoch, head = open_session(KEYS[1], ARGV[1], tonumber(ARGV[2]))
return {epoch, head}
