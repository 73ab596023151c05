-- The position of a session's log now; begins the session if there is none.
-- KEYS: session base, log.  ARGV: lineage, epoch for a new session, ttl (ms).  Returns {epoch, head}.
local record = open_session(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]))
return {record[1], tonumber(record[2])}
