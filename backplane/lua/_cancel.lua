-- begin_cancel(task, status, why) has nothing more of a task shown. Whether its action was pushed by then tells only its
-- mark, which is elsewhere: `unpushed` says that it has to be asked, and whether somebody was told that it was accepted
-- ('held') or nobody ('reserved').
local function begin_cancel(task, status, why)
  redis.call('HSET', task, 'status', 'cancelling', 'reason', why)
  if status ~= 'reserved' and status ~= 'held' then return end
  redis.call('HSET', task, 'unpushed', redis.call('HEXISTS', task, 'action') == 1 and 'held' or 'reserved')
end
