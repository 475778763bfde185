/*
 * confirm.pml: batches of use in two transactions, and a failover.
 *
 * A server that lives on sends its use to a primary.  The first transaction
 * writes the batch, and its COMMIT does not wait.  The second one names the batch
 * again, and its COMMIT waits for the synchronous standby.  The primary fails,
 * and the synchronous standby takes its place.
 */
#define USES 3
#define SENDS 5
#define MIN(a, b) ((a) < (b) -> (a) : (b))

/* The sender's entry and outbox. */
byte count;
byte known;
byte batch;
bool is_full;
byte copied;
byte known0;

/* Of the primary, and of the synchronous standby; the WAL counts writes. */
byte table;
byte noted;
byte wal;
byte replica;
byte replica_noted;
byte replayed;
bool has_failed;

/* Of the check. */
byte uses;

/* usage_send() */
active proctype sender()
{
	byte sends;
	byte mine;					/* what COMMIT waits for */
	bool failed_then;

	do
	:: atomic { uses < USES -> uses++; count++ }
	:: sends < SENDS && (is_full || count > known) ->
		sends++;
		atomic {
			if
			:: !is_full ->
				batch++;
				is_full = true;
				copied = count;
				known0 = known;
				known = count
			:: else
			fi
		}
		/* The first transaction: receive() writes it, unless it is known. */
		atomic {
			failed_then = has_failed;
			if
			:: noted < batch ->
				table = table + copied - MIN(known0, table);
				noted = batch;
				wal++
			:: noted >= batch
			fi;
			assert(table <= uses)
		}
		if
		:: atomic {
			/* The second one: the sender's row is written again. */
			failed_then == has_failed ->
#ifndef MUTANT_READ_ONLY
				wal++;
				mine = wal
#else
				mine = 0
#endif
			};
			if
			:: atomic {
				/* The new primary waits for nobody. */
				#ifndef MUTANT_NO_WAIT
				failed_then == has_failed && (has_failed || replayed >= mine) ->
#else
				failed_then == has_failed ->
#endif
					is_full = false;
					copied = 0;
					known0 = 0
				}
			:: failed_then != has_failed		/* the connection ends */
			:: true								/* the worker gives up */
			fi
		:: failed_then != has_failed
		:: true
		fi
	:: uses == USES && (sends == SENDS || (!is_full && count == known)) -> break
	od;
	/* What was acknowledged is in the table, whichever server has it. */
	atomic {
		has_failed ->
			assert(table <= uses);
			assert(is_full || count > known || table == uses)
	}
}

/* The synchronous standby; then it is the primary. */
active proctype standby()
{
	do
	:: atomic {
		!has_failed && replayed != wal ->
			replica = table;
			replica_noted = noted;
			replayed = wal
		}
	:: atomic {
		!has_failed ->
			has_failed = true;
			table = replica;
			noted = replica_noted
		}
	:: has_failed -> break
	od
}
