// What a node of ours does after the front end's own.

export function after(object, method, then) {
    const original = object[method];
    object[method] = function (...args) {
        const result = original?.apply(this, args);
        then(...args);
        return result;
    };
}
