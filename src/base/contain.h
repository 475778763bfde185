/*
 * contain.h
 *		Work whose errors are not the caller's.
 */
#ifndef CONTAIN_H
#define CONTAIN_H

typedef void (*ContainedWork) (void *arg);

extern ErrorData *contain_errors(ContainedWork work, void *arg);

#endif
