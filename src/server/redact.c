/*
 * redact.c
 *		Tokens are kept out of the server log and of pg_stat_activity.
 *
 * A client may paste a token into the text of a statement, or send the token
 * as a parameter that the server is set to log.  The log would then show the
 * token.  So hooks mask everything that looks like a token in these places:
 *
 * - every message that is about to be logged;
 * - this backend's own entry of pg_stat_activity, after its statement was
 *   parsed, when it is executed, and after it failed;
 * - the setting application_name itself, because each line of the log may begin
 *   with it.  The end of a transaction or of a savepoint may restore an unmasked
 *   name, so the name is masked again there.
 *
 * Without memory the server lists its memory contexts, past the hook for
 * messages.  The contexts of a prepared statement have its text as identifier.
 * Such an identifier is removed when the statement is analyzed, or executed.
 *
 * token_redact() decides what looks like a token.
 *
 * PostgreSQL quotes the row that a constraint refuses, with its digest.  So
 * messages about constraints of api_keys lose their detail, and the line that
 * COPY quotes.
 *
 * If a message goes both to the log and to the client, the client's copy is
 * masked too.  A text that other code has copied before is not masked.  For
 * example, pg_stat_statements keeps utility statements unmasked.  Imported
 * tokens have no shape, so they are not recognized.
 *
 * Memory: the fields of a message are overwritten in place, because a mask is
 * never longer than the token.  The statement's text is still read by others,
 * so it is replaced by a copy from malloc(), which cannot raise.  The
 * statement is hidden if there is no memory for the copy, or for the server to
 * write the copy out.  A copy lives until the next copy is made.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "parser/analyze.h"
#include "pgstat.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/portal.h"

#include "base/settings.h"
#include "compat.h"
#include "server/redact.h"
#include "token/token.h"

/*
 * The memory that a statement needs, in lengths of the statement.  Without this
 * memory the statement is hidden.  The copy takes 1 length.  To write the
 * statement, the server needs a buffer for the plain log and another for CSV or
 * JSON.  Each buffer takes up to 4 lengths, because the text is escaped and
 * buffers grow by doubling:
 *
 *		1 + 2 * 4
 */
#define STATEMENT_ROOM 9

/* How much of a memory context's identifier MemoryContextStats() shows. */
#define IDENTIFIER_SHOWN 100

/* Mask in place, wipe the bytes that become free, and return the new length. */
typedef size_t (*Redactor) (char *s, size_t len);

static emit_log_hook_type previous_emit_log_hook = NULL;
static post_parse_analyze_hook_type previous_post_parse_analyze_hook = NULL;
static ExecutorStart_hook_type previous_executor_start_hook = NULL;
static ExecutorRun_hook_type previous_executor_run_hook = NULL;
static ProcessUtility_hook_type previous_process_utility_hook = NULL;

/* The masked statement that debug_query_string points to. */
static char *masked_statement = NULL;

/* Mask a C string in place with a redactor.  NULL is skipped. */
static void
redact_string(char *s, Redactor redact)
{
	if (s != NULL)
	{
		size_t		len = strlen(s);

		if (token_suspected(s, len))
			redact(s, len);
	}
}

/* Mask everything in a C string that looks like a token.  NULL is skipped. */
static void
redact_text(char *s)
{
	redact_string(s, token_redact);
}

/* Do the same for a text that may quote a part of another text. */
static void
redact_excerpt(char *s)
{
	redact_text(s);
	if (s != NULL)
		token_redact_cut(s, strlen(s));
}

/*
 * Mask application_name.  A name that is not a token must stay as it is,
 * because the name is the client's own and SHOW returns it.
 */
static void
redact_application_name(void)
{
	redact_string(application_name, token_redact_kept);
}

/*
 * Mask the statement, which is about to be logged or given to parallel workers.
 * Return false if there is no memory to copy and write the statement.  A
 * statement that was masked before is copied again, to test whether there is
 * still memory to write it.
 */
static bool
redact_statement(void)
{
	size_t		len;
	char	   *copy;
	char	   *shrunk;

	if (debug_query_string == NULL)
		return true;
	len = strlen(debug_query_string);
	if (!token_suspected(debug_query_string, len))
		return true;
	copy = malloc((len + 1) * STATEMENT_ROOM);
	if (copy == NULL)
		return false;
	memcpy(copy, debug_query_string, len + 1);
	/* A cancel would leave the copy behind, unmasked. */
	HOLD_INTERRUPTS();
	redact_text(copy);
	RESUME_INTERRUPTS();
	shrunk = realloc(copy, len + 1);
	if (shrunk != NULL)
		copy = shrunk;
	debug_query_string = copy;
	free(masked_statement);
	masked_statement = copy;
	return true;
}

/*
 * Mask this backend's own entry of pg_stat_activity, and application_name.
 * The entry is masked in place, because no other process writes it, and
 * nothing in between can raise.  The entry counts its changes, so an entry
 * without a change is skipped.
 */
static void
redact_activity(void)
{
	static int	changes_seen = -1;	/* odd: never the count of a whole entry */
	volatile PgBackendStatus *entry = MyBEEntry;

	if (!settings_redact_logs || entry == NULL)
		return;
	if (entry->st_changecount != changes_seen)
	{
		if (token_suspected(entry->st_activity_raw, strlen(entry->st_activity_raw)) ||
			token_suspected(entry->st_appname, strlen(entry->st_appname)))
		{
			PGSTAT_BEGIN_WRITE_ACTIVITY(entry);
			redact_text(entry->st_activity_raw);
			redact_string(entry->st_appname, token_redact_kept);
			PGSTAT_END_WRITE_ACTIVITY(entry);
		}
		redact_application_name();
		changes_seen = entry->st_changecount;
	}
}

/* Remove a memory context's identifier if it may show a token.  Never raises. */
static void
hide_identifier(MemoryContext context)
{
	if (settings_redact_logs && context->ident != NULL &&
		token_suspected(context->ident,
						strnlen(context->ident, IDENTIFIER_SHOWN)))
		MemoryContextSetIdentifier(context, NULL);
}

/* Remove what a message about a constraint of api_keys quotes of the row. */
static void
redact_row(ErrorData *edata)
{
	if (edata->constraint_name == NULL && edata->column_name == NULL)
		return;
	if (edata->schema_name == NULL || edata->table_name == NULL ||
		strcmp(edata->schema_name, "rk_apikeys") != 0 ||
		strcmp(edata->table_name, "api_keys") != 0)
		return;
	edata->detail = NULL;
	if (edata->context != NULL && strstr(edata->context, "COPY") != NULL)
		edata->context = NULL;
}

/* emit_log_hook: mask a message that goes to the server log.  Never raises. */
static void
redact_log(ErrorData *edata)
{
	static bool busy = false;

	if (settings_redact_logs && !busy)
	{
		busy = true;
		HOLD_INTERRUPTS();
		redact_row(edata);
		redact_excerpt(edata->message);
		redact_excerpt(edata->detail);
		redact_text(edata->detail_log);
		redact_text(edata->hint);
		redact_excerpt(edata->context);
		redact_text(edata->internalquery);
		if (!edata->hide_stmt && !redact_statement())
			edata->hide_stmt = true;
		redact_application_name();
		/* The statement may have failed before it was parsed. */
		redact_activity();
		RESUME_INTERRUPTS();
		busy = false;
	}
	if (previous_emit_log_hook)
		previous_emit_log_hook(edata);
}

/*
 * post_parse_analyze_hook: the statement was parsed.  If it is to be prepared,
 * the current memory context has the context of its plan source as a child.
 */
static void
redact_parsed(ParseState *pstate, Query *query, COMPAT_JUMBLE_STATE *jstate)
{
	if (previous_post_parse_analyze_hook)
		previous_post_parse_analyze_hook(pstate, query, jstate);
	redact_activity();
	for (MemoryContext child = CurrentMemoryContext->firstchild;
		 child != NULL; child = child->nextchild)
		if (strcmp(child->name, "CachedPlanSource") == 0)
			hide_identifier(child);
}

/*
 * ExecutorStart_hook.  The server reports a statement that was parsed earlier
 * to pg_stat_activity again when its parameters are bound.  Bind starts the
 * executor.
 */
static void
redact_started(QueryDesc *query_desc, int eflags)
{
	redact_activity();
	if (ActivePortal != NULL && ActivePortal->cplan != NULL)
		hide_identifier(ActivePortal->cplan->context);
	if (previous_executor_start_hook)
		previous_executor_start_hook(query_desc, eflags);
	else
		standard_ExecutorStart(query_desc, eflags);
}

/* ExecutorRun_hook.  The server reports the statement again to execute it. */
static void
redact_run(QueryDesc *query_desc, ScanDirection direction, COMPAT_RUN_PARAMS)
{
	redact_activity();
	if (previous_executor_run_hook)
		previous_executor_run_hook(query_desc, direction, COMPAT_RUN_ARGS);
	else
		standard_ExecutorRun(query_desc, direction, COMPAT_RUN_ARGS);
	/* The statement may have set application_name. */
	redact_activity();
}

/*
 * ProcessUtility_hook.  The parallel workers that build an index or vacuum show
 * the leader's statement, and run no statement of their own.  So the statement
 * is masked before they start.  Without memory to mask it, they show it
 * unmasked.
 */
static void
redact_utility(PlannedStmt *statement, const char *query, bool read_only_tree,
			   ProcessUtilityContext context, ParamListInfo params,
			   QueryEnvironment *environment, DestReceiver *dest,
			   QueryCompletion *completion)
{
	redact_activity();
	if (settings_redact_logs && MyBEEntry != NULL &&
		debug_query_string != masked_statement &&
		token_suspected(MyBEEntry->st_activity_raw,
						strlen(MyBEEntry->st_activity_raw)))
		(void) redact_statement();
	if (previous_process_utility_hook)
		previous_process_utility_hook(statement, query, read_only_tree, context,
									  params, environment, dest, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context,
								params, environment, dest, completion);
	redact_activity();
}

/*
 * Transaction callback.  It masks the application_name of a new connection,
 * which is set in the connection's first transaction, and a statement that
 * failed and is not logged.
 */
static void
redact_ended(XactEvent event, void *arg)
{
	redact_activity();
}

/* Install the hooks and the callback. */
void
redact_init(void)
{
	previous_emit_log_hook = emit_log_hook;
	emit_log_hook = redact_log;
	previous_post_parse_analyze_hook = post_parse_analyze_hook;
	post_parse_analyze_hook = redact_parsed;
	previous_executor_start_hook = ExecutorStart_hook;
	ExecutorStart_hook = redact_started;
	previous_executor_run_hook = ExecutorRun_hook;
	ExecutorRun_hook = redact_run;
	previous_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = redact_utility;
	RegisterXactCallback(redact_ended, NULL);
}
